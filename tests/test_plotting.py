import logging

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.image import imread

from ssamba.audio.fbank import hertz_ticks, log_mel, mel_centers
from ssamba.config import FrontEndConfig
from ssamba.evaluation.report import plot_confusion
from ssamba.plotting import blank_figure, draw_table, label_lines, save_figure, spectrogram, styled


def test_a_font_is_found_for_characters_that_the_usual_one_lacks(caplog):
    usual = set(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())
    other = set(font_manager.get_font(font_manager.findfont("STIXGeneral")).get_charmap())
    lacking = chr(min(other - usual))
    with styled(["дрозд", "σπίνος", lacking]) as show:
        assert mpl.rcParams["font.family"][0] == "DejaVu Sans"
        assert len(mpl.rcParams["font.family"]) == 2
        assert show(f"дрозд {lacking}") == f"дрозд {lacking}"
    assert not caplog.records


def test_characters_without_a_font_are_squares_and_one_warning_names_them(caplog):
    private = "\U0010abce\U0010abcf"
    with caplog.at_level(logging.WARNING), styled(["wren", private]) as show:
        assert show(f"wren {private}") == "wren \u25a1\u25a1"
    assert [record.message for record in caplog.records] == [
        f"no installed font has the characters {private}, so a plot shows squares: install one, such as Noto Sans CJK"
    ]


def test_confusions_of_labels_in_any_script_are_plotted(tmp_path, caplog):
    counts = np.array([[5, 1, 0], [0, 0, 0], [2, 0, 9]])
    picture = plot_confusion(["wren $5", "дрозд", "\U0010abcd"], counts, tmp_path / "c.svg", "birds")
    text = picture.read_text(encoding="utf-8")
    for shown in (
        "no. 3 (11)",
        "no.: number in the sorted list of labels",
        "wren $5 (6)",
        "% of the true label's clips",
    ):
        assert shown in text
    assert "squares" in caplog.text
    many = plot_confusion([f"class {i}" for i in range(70)], np.eye(70, dtype=int), tmp_path / "many.svg")
    assert "number in the sorted list of labels" in many.read_text(encoding="utf-8")


def test_names_of_lines_cover_neither_each_other_nor_lines(tmp_path):
    with styled():
        figure = blank_figure(4, 3)
        axis = figure.subplots()
        axis.plot([1, 2, 3], [1, 2, 3])
        axis.plot([1, 2], [1.1, 2.0])
        axis.plot([1, 2], [1.0, 1.9])
        axis.set_xlim(1, 4)
        label_lines({axis: [(3, 3, "longest", "k"), (2, 2.0, "one", "k"), (2, 1.9, "another", "k")]})
        save_figure(figure, tmp_path / "x.png")
        boxes = [text.get_window_extent() for text in axis.texts]
        lines = [axis.transData.transform(np.linspace(a, b)) for a, b in (((1, 1), (3, 3)), ((1, 1.1), (2, 2.0)))]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(box.contains(*point) for box in boxes for line in lines for point in line)


def test_the_axis_of_a_spectrogram_is_in_hertz(medley, tmp_path):

    for name in ("16khz", "48khz", "x10"):
        front_end = FrontEndConfig().named(name)
        places, labels = hertz_ticks(front_end)
        centers = mel_centers(front_end)
        hertz = [float(label.rstrip("k")) * (1000 if label.endswith("k") else 1) for label in labels]
        # The center of bin i is drawn at i + 0.5; the edge of the band is the top of the last bin.
        found = np.interp(np.array(places) - 0.5, np.arange(128), centers)
        np.testing.assert_allclose(found, hertz, rtol=0.03)
    features = log_mel(torch.from_numpy(medley[:32_000])).numpy()
    with styled():
        figure = blank_figure(4, 3)
        left, right = figure.subplots(1, 2)
        image = spectrogram(left, features, 2.0, hertz_ticks(FrontEndConfig()))
        draw_table(right, ["side", "ms"], [["SSAMBA", "3.2"], ["SSAST", "33.0"]])
        picture = imread(save_figure(figure, tmp_path / "s.png"))
    assert image.get_extent() == [0, 2.0, 0, 128]
    assert left.get_ylabel() == "Hz"
    assert picture.std() > 0.1
