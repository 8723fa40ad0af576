"""A model as a static web page that computes in the browser (`pip install "ssamba[onnx]"`, docs/browser.md).

export_web("ssamba2-tiny", "page/")         # open page/index.html
"""

from ssamba.integrations.web.export import WebReport, export_web
from ssamba.integrations.web.runtime import VERSION as RUNTIME_VERSION

__all__ = ["RUNTIME_VERSION", "WebReport", "export_web"]
