"""Pictures are written whole, at a size that shows something."""

from __future__ import annotations

import pytest


def test_plots_recordings(tmp_path, embedder, clips):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    from ssamba.library.figures import plot_recordings

    recordings = [(c.stem, embedder.features(c), embedder.embed(c)) for c in clips[:2]]
    picture = imread(plot_recordings(recordings, tmp_path / "x" / "p.png", embedder.front_end, "title"))
    assert picture.shape[0] > 400
    assert picture.shape[1] > 900
    assert len({tuple(pixel) for pixel in picture[::20, ::20, :3].reshape(-1, 3).round(2).tolist()}) > 100
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["p.png"]
    with pytest.raises(ValueError, match="no recordings"):
        plot_recordings([], tmp_path / "p.png")
