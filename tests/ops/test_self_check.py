"""The test that a backend takes before it is used, with backends that are sound, wrong, or fail."""

from __future__ import annotations

import json
import os
import re
import threading
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.conftest import invoke

from ssamba.errors import BackendUnavailableError, BackendWarning, ConfigError
from ssamba.ops import available_backends, causal_conv, dispatch, eager, selective_scan, self_check
from ssamba.ops.operators import Backend

CPU = torch.device("cpu")


class New:
    """A backend that `auto` would pick on CPUs; `calls` counts its scans."""

    def __init__(self, fault=""):
        self.fault, self.calls = fault, 0
        self.backend = Backend(
            "new", lambda device, dtype: None, self.scan, eager.causal_conv, automatic_on="cpu", needs_check=True
        )

    def scan(self, inputs):
        self.calls += 1
        if self.fault == "fails":
            raise RuntimeError("no kernel image is available")
        out, last = eager.selective_scan(inputs)
        if self.fault == "nan":
            return out * torch.where(out > 0, 1.0, torch.nan), last
        # The result stays as it is, and one gradient is 1 % too large.
        return (out + 0.01 * (inputs.u - inputs.u.detach()) if self.fault == "gradient" else out), last


def start_process(monkeypatch, new):
    """Forget what this process knows about backends, as a new one would."""
    monkeypatch.setattr(self_check, "_known", {})
    monkeypatch.setattr(dispatch, "_BACKENDS", (new.backend, *dispatch._BACKENDS[-3:]))


@pytest.fixture
def start(monkeypatch, tmp_path):
    """Return a function that starts a process whose first backend is the given one."""
    monkeypatch.setenv("SSAMBA_CACHE", str(tmp_path))
    monkeypatch.delenv("SSAMBA_SELF_CHECK", raising=False)
    return lambda new: start_process(monkeypatch, new) or new


def scan():
    x = torch.ones(1, 3, 2)
    return selective_scan(x, x, -torch.ones(2, 2), x, x)


def picked(device="cpu"):
    return next(status for status in available_backends(device) if status.chosen).name


def test_a_sound_backend_is_tested_once_and_used(start, tmp_path):
    new = start(New())
    scan()
    scan()
    tested = new.calls - 2
    assert tested > 0
    again = start(New())
    scan()
    assert again.calls == 1, "the result is cached"
    (stored,) = (tmp_path / "backends").glob("new-*.json")
    facts = json.loads(stored.read_text())
    assert facts["problem"] is None
    assert {"device", "dtype", "torch", "triton", "ssamba", "sources"} < facts.keys()
    stored.write_text("{")
    damaged = start(New())
    scan()
    assert damaged.calls == tested + 1


@pytest.mark.parametrize(
    ("fault", "message", "cached"),
    [
        ("gradient", r"gave wrong results: gradient of u of the \w+ scan over \d+ steps is off by", True),
        ("nan", r"gave wrong results: .* is off by inf", True),
        ("fails", r"failed with RuntimeError: no kernel image is available", False),
    ],
)
def test_a_wrong_or_failing_backend_is_replaced_with_one_warning(start, fault, message, cached):
    new = start(New(fault))
    with pytest.warns(BackendWarning, match=message) as caught:
        scan()
    scan()
    assert len(caught) == 1
    assert "ssamba info --check" in str(caught[0].message)
    assert "SSAMBA_SELF_CHECK=0" in str(caught[0].message)
    assert picked() != "new"
    reason = next(s.reason for s in available_backends() if s.name == "new")
    assert re.match(f"only on request: it {message}", reason)
    tested = new.calls
    again = start(New(fault))
    with pytest.warns(BackendWarning, match=message):
        scan()
    assert again.calls == (0 if cached else tested), "an error may have a cause that was removed"


def test_other_versions_are_tested_anew(start, monkeypatch):
    start(New())
    scan()
    monkeypatch.setattr(self_check, "_versions", lambda: {"triton": "99"})
    new = start(New())
    scan()
    assert new.calls > 1


def test_the_test_can_be_skipped(start, monkeypatch):
    new = start(New("gradient"))
    monkeypatch.setenv("SSAMBA_SELF_CHECK", "0")
    scan()
    assert new.calls == 1
    monkeypatch.setenv("SSAMBA_SELF_CHECK", "no")
    with pytest.raises(ConfigError, match=r"SSAMBA_SELF_CHECK must be 0 .* got 'no'"):
        scan()


def test_a_named_backend_runs_untested(start):
    new = start(New("gradient"))
    x = torch.ones(1, 3, 2)
    selective_scan(x, x, -torch.ones(2, 2), x, x, backend="new")
    assert new.calls == 1


class Block(torch.nn.Module):
    def forward(self, x):
        x = causal_conv(x, torch.ones(2, 2))
        return selective_scan(x, x, -torch.ones(2, 1), x[..., :1], x[..., 1:])


def compiled(x):
    torch._dynamo.reset()
    return torch.compile(Block(), fullgraph=True, backend="aot_eager")(x)


def exported(x):
    return torch.export.export(Block(), (x,), strict=False).module()(x)


def in_inference_mode(x):
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        return Block()(x)


def under_vmap(x):
    return torch.func.vmap(Block())(x[None])[0]


@pytest.mark.parametrize("fault", ["", "gradient"])
@pytest.mark.parametrize("call", [compiled, exported, in_inference_mode, under_vmap])
def test_the_first_call_may_be_traced(start, call, fault):
    new, x = start(New(fault)), torch.arange(6.0).reshape(1, 3, 2) / 6
    expected = Block()(x) if not fault else None
    start(new)
    new.calls = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call(x)
    assert sum(w.category is BackendWarning for w in caught) == bool(fault)
    if expected is not None:
        torch.testing.assert_close(result.float(), expected, rtol=0, atol=0.02)  # bfloat16 is one of the callers
    assert (picked() == "new") == (not fault)


def test_threads_test_once_and_a_forked_child_is_not_blocked(start):
    new = start(New())
    threads = [threading.Thread(target=scan) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    once = start(New())
    self_check.examine(once.backend, CPU, torch.float32)
    assert new.calls == once.calls + 4
    with self_check._lock:
        child = os.fork()
        if child == 0:
            scan()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_nothing_runs_while_a_graph_is_captured(start, monkeypatch):
    new = start(New())
    gpu = SimpleNamespace(name="A GPU", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.warns(BackendWarning, match="run the model once before"):
        assert self_check.problem(new.backend, torch.device("cuda:0"), torch.float32)
    assert new.calls == 0


def test_a_device_that_is_left_unusable_is_avoided_by_the_next_process(start, monkeypatch):
    start(New("fails"))
    monkeypatch.setattr(self_check, "device_works", lambda device: False)
    with pytest.raises(BackendUnavailableError, match=r"cannot use the device any more.*start again"):
        scan()
    new = start(New("fails"))
    with pytest.warns(BackendWarning, match="no kernel image"):
        scan()
    assert new.calls == 0


def test_info_check_compares_every_backend(start):
    start(New("gradient"))
    done = invoke("info", "--check")
    assert done.exit_code == 1
    assert "FAILED: it gave wrong results: gradient of u" in " ".join(done.stdout.split())
    start(New())
    done = invoke("info", "--check")
    assert done.exit_code == 0
    text = " ".join(done.stdout.split())
    assert "new on cpu, float32 agrees, off by at most" in text
    assert "eager on cpu, float16 agrees" in text
    assert picked() == "new"


@pytest.mark.parametrize("operator", ["causal_conv", "bimamba_mixer", "mix_into"])
def test_every_operator_is_compared(operator):
    """Each operator in turn adds 1 % to its result."""
    sound = self_check._EAGER

    def wrong(*args):
        out = getattr(sound, operator)(*args)
        if operator == "mix_into":
            args[0].mul_(1.01)
            return None
        return out * 1.01

    for backend, problem in ((sound, False), (replace(sound, **{operator: wrong}), True)):
        assert (self_check.examine(backend, CPU, torch.float32).problem is not None) == problem
