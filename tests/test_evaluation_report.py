"""`report.html` of an evaluation: what it says, what it must not tell, and what it does in a browser."""

import base64
import hashlib
import json
import re
import shutil
from datetime import UTC, date, datetime, timedelta
from html.parser import HTMLParser
from itertools import pairwise

import nibabel as nib
import numpy as np
import pytest
from playwright.sync_api import sync_playwright
from scans import write_laseg, write_nifti
from stores import make_store, tiny_preset
from typer.testing import CliRunner

from sdm_cli.cli import app
from sdm_cli.data.store import SliceStore
from sdm_cli.runs.evaluate import evaluate_model, evaluate_predictions
from sdm_cli.runs.evaluation_report import ranked_cases
from sdm_cli.runs.mask_pairs import Pair
from sdm_cli.runs.preprocess import preprocess
from sdm_cli.runs.run_folder import RunFolder
from sdm_cli.runs.run_report import write_run_report
from sdm_cli.runs.shown_cases import stored_case
from sdm_cli.runs.train import train

pytestmark = pytest.mark.usefixtures("pictures")

HOSTILE = '<script>alert("x")</script> & \'"'
HOSTILE_CASE = "c'\"><img src=x onerror=alert(1)>"
AFFINE = np.diag([1.5, 2.0, 5.0, 1.0])
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tags with their attributes, and the text of each element."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self._open = [], [], []
        self.feed(text)
        self.text = " ".join(text for tag, text in self.texts if tag not in ("script", "style"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", " ".join(data.split())))

    def of(self, tag):
        return [text for kind, text in self.texts if kind == tag]

    def attributes(self, tag):
        return [attributes for kind, attributes in self.tags if kind == tag]


def _write(folder, n_cases=4):
    """Masks, labels in two sites and scans, the masks of the later cases worse; the last case has a hostile name."""
    x, y, z = np.indices((24, 20, 8))
    random = np.random.default_rng(0)
    for i in range(n_cases):
        label = ((x - 9) ** 2 + (y - 9) ** 2 + 4 * (z - 4) ** 2 < 40).astype(np.uint8)
        label[16:22, 12:18, 2:6] = 7
        name = HOSTILE_CASE if i == n_cases - 1 else f"c{i}"
        site = "north" if i % 2 == 0 else "south"
        write_nifti(folder / "labels" / site / f"{name}.nii.gz", label, AFFINE)
        write_nifti(folder / "masks" / f"{name}.nii.gz", np.roll(label, i, 1), AFFINE)
        scan = (100 * label + 50 * random.random(label.shape)).astype(np.float32)
        image = nib.Nifti1Image(scan, AFFINE)
        image.header["descrip"] = b"DOE^JANE 1950-01-01"
        image.header["db_name"] = b"DOE^JANE"
        (folder / "scans").mkdir(exist_ok=True)
        nib.save(image, folder / "scans" / f"{name}.nii.gz")
    preset = {"name": "p", "data": {"classes": {HOSTILE: 1, "box": 7}}, "train": {"steps": 1}}
    (folder / "preset.yaml").write_text(json.dumps(preset))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An evaluation of four cases of two sites by the command line."""
    folder = tmp_path_factory.mktemp("evaluation")
    _write(folder)
    words = ["--predictions", "masks", "--labels", "labels", "--scans", "scans", "--preset", "preset.yaml", "-o", "out"]
    command = [str(folder / word) if (folder / word).exists() or word == "out" else word for word in words]
    result = CliRunner().invoke(app, ["evaluate", *command])
    assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "out" / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def test_the_numbers_are_those_of_the_summary(folder, page):
    summary = json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))
    mean = summary["foreground_mean"]
    assert f"{100 * mean['Dice']:.1f} \u00b1 {100 * mean['std']['Dice']:.1f}" in page.of("b")
    assert f"{mean['HD95']:.1f} \u00b1 {mean['std']['HD95']:.1f}" in page.of("b")
    assert f"Dice {100 * summary['pooled']['pooled_dice']:.1f} %, Jaccard" in page.text
    volume = mean["volume_difference_percent"], mean["std"]["volume_difference_percent"]
    assert "{:.1f} \u00b1 {:.1f}".format(*volume) in page.of("b")
    names = ["Dice %", "Jaccard %", "NSD 1 mm %", "HD95 mm", "ASD mm", "Volume difference %"]
    assert page.of("span")[: len(names)] == names and set(names) <= set(page.of("th"))
    assert "Volume difference by class" in page.of("figcaption")
    assert "The domain with the lowest mean Dice is south" in page.text
    for rule in summary["rules"].values():
        assert rule in page.of("dd")


def test_worst_median_and_best_case_are_shown_with_three_views_each(page):
    headings = page.of("h3")
    assert [heading.split(":")[0] for heading in headings] == ["Worst case", "Median case", "Best case"]
    assert HOSTILE_CASE in headings[0] and "c0" in headings[2]
    sliders = [attributes for attributes in page.attributes("input") if attributes["type"] == "range"]
    assert len(sliders) == 9
    assert len(page.attributes("image")) > 30  # the scans lie beneath


def test_every_case_stands_in_the_table_from_worst_to_best(page):
    rows = [text for text in page.of("th") if text in ("c0", "c1", "c2", HOSTILE_CASE)]
    assert rows == [HOSTILE_CASE, "c2", "c1", "c0"]


def test_every_dot_of_a_box_plot_names_its_case(page):
    titles = page.of("title")
    for name in ("c0", "c1", "c2", HOSTILE_CASE):
        assert any(re.fullmatch(rf"{re.escape(name)}: [\d.]+ %", title) for title in titles)


def test_names_are_text_and_never_markup(page):
    assert len(page.attributes("script")) == 1 and not page.attributes("img")
    assert HOSTILE in page.of("th")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_the_page_loads_nothing_and_runs_its_own_script_alone(text, page):
    (policy,) = (
        tag["content"] for tag in page.attributes("meta") if tag.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    for kind in ("style", "script"):
        (content,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    addresses = [tag[name] for _, tag in page.tags for name in ("href", "src", "action") if name in tag]
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert "http://" not in text and "https://" not in text


def test_the_page_tells_nothing_of_machine_and_patient(text, folder):
    assert str(folder) not in text and str(folder.parent) not in text
    assert "DOE" not in text and "JANE" not in text


def test_headings_are_in_order_and_pictures_have_words(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert dict(page.tags)["html"]["lang"] == "en"
    for svg in page.attributes("svg"):
        assert svg["role"] == "img" and len(svg["aria-label"]) > 10
    assert len({tag["id"] for _, tag in page.tags if "id" in tag}) == sum("id" in tag for _, tag in page.tags)


def test_a_report_is_not_replaced_unasked(tmp_path):
    _write(tmp_path, 1)
    (tmp_path / "masks" / "report.html").write_text("mine")
    command = ["evaluate", "--predictions", str(tmp_path / "masks"), "--labels", str(tmp_path / "labels")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1 and "report.html" in result.stderr and "--overwrite" in result.stderr
    assert (tmp_path / "masks" / "report.html").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "masks" / "summary.json").exists()


def test_without_scans_the_outlines_stand_alone_and_a_wrong_scan_is_said(tmp_path, capsys):
    _write(tmp_path, 2)
    evaluate_predictions(tmp_path / "masks", tmp_path / "labels")
    alone = Page((tmp_path / "masks" / "report.html").read_text(encoding="utf-8"))
    assert not alone.attributes("image") and len(alone.of("h3")) == 2 and "warning" not in capsys.readouterr().err
    assert alone.of("p").count("No scan of this case was found, so the outlines stand alone.") == 2
    write_nifti(tmp_path / "scans" / "c0.nii.gz", np.zeros((5, 5, 5), np.int16), AFFINE)
    evaluate_predictions(tmp_path / "masks", tmp_path / "labels", overwrite=True, scans=tmp_path / "scans")
    said = capsys.readouterr().err
    assert f"{tmp_path / 'scans'}: no scan of" not in said
    assert re.search(r"c0 is not shown in report\.html: \S+scans/c0\.nii\.gz is not on the voxel grid of \S+c0", said)
    other = Page((tmp_path / "masks" / "report.html").read_text(encoding="utf-8"))
    assert "could not be read again" in other.text and other.attributes("image")
    result = CliRunner().invoke(app, ["evaluate", "--scans", str(tmp_path / "scans")])
    assert result.exit_code == 2 and "scans" in result.stderr


def test_a_folder_of_other_scans_is_a_warning(tmp_path, capsys):
    _write(tmp_path, 2)
    write_nifti(tmp_path / "others" / "x.nii.gz", np.zeros((5, 5, 5), np.int16), AFFINE)
    evaluate_predictions(tmp_path / "masks", tmp_path / "labels", scans=tmp_path / "others")
    assert f"warning: {tmp_path / 'others'}: no scan of {HOSTILE_CASE}, c0; the report shows" in capsys.readouterr().err


def test_the_title_says_what_was_scored_and_when(page):
    assert page.of("h1") == ["Masks in masks, 4 cases"]
    subtitle = page.of("p")[0]
    assert re.fullmatch(r"Compared with the labels in labels, 20\d\d-\d\d-\d\d \(UTC\)", subtitle)
    assert abs(datetime.now(UTC).date() - date.fromisoformat(subtitle.split()[-2])) <= timedelta(1)


def test_missing_and_failed_cases_are_told_without_the_places_of_their_files(tmp_path):
    _write(tmp_path, 4)
    (tmp_path / "masks" / "c0.nii.gz").unlink()
    damaged = tmp_path / "masks" / "c1.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:60])
    evaluate_predictions(tmp_path / "masks", tmp_path / "labels")
    text = (tmp_path / "masks" / "report.html").read_text(encoding="utf-8")
    assert "No mask of c0: scored as empty." in text
    assert re.search(r"c1 is in no number: masks/c1\.nii\.gz cannot be read", text)
    assert str(tmp_path) not in text
    assert "missed in 1 case" in text


def test_cases_without_a_score_make_a_report_too(tmp_path):
    for name in ("masks", "labels"):
        write_nifti(tmp_path / name / "a.nii.gz", np.zeros((4, 4, 4), np.uint8), AFFINE)
    (tmp_path / "preset.yaml").write_text(json.dumps({"data": {"classes": {"liver": 1}}, "train": {"steps": 1}}))
    command = ["--predictions", str(tmp_path / "masks"), "--labels", str(tmp_path / "labels")]
    result = CliRunner().invoke(app, ["evaluate", *command, "--preset", str(tmp_path / "preset.yaml")])
    assert result.exit_code == 0, result.stderr
    page = Page((tmp_path / "masks" / "report.html").read_text(encoding="utf-8"))
    assert "No case has a score" in page.text and "-" in page.of("b")


def test_ranking_leaves_out_what_has_no_dice():
    def case(name, *dice):
        return {"case_id": name, "metrics": {str(i): {"Dice": value} for i, value in enumerate(dice)}}

    cases = [case("b", 0.5, None), case("a", 0.9, 0.7), case("c", None, None), case("d", 0.0, 0.2)]
    assert [name for name, _ in ranked_cases({"metric_per_case": cases})] == ["d", "b", "a"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few steps on phantoms whose test cases have labels."""
    folder = tmp_path_factory.mktemp("run")
    split = folder / "split.yaml"
    split.write_text("labeled: [l0]\nunlabeled: [u0, u1]\ntest: [l1, l2]\n")
    preset = tiny_preset(data={"split": str(split), "grid": {"size": [3, 32, 32]}}, train={"select_on": "labeled"})
    store = make_store(folder, preset, n_labeled=3, n_unlabeled=2)
    return train(preset, store, folder / "run", "cpu")


def test_only_cases_whose_files_tell_directions_have_letters(run, tmp_path):
    """An HDF5 file tells none."""
    write_laseg(tmp_path, "C")
    preset = tiny_preset(data={"classes": {"atrium": 1}})
    of_h5, of_nifti = (
        SliceStore(preprocess(tmp_path, None, preset, tmp_path / "store")),
        SliceStore(run.parent / "store"),
    )
    for store, case_id, is_oriented in ((of_h5, "C", False), (of_nifti, "l0", True)):
        mask = store.reference_volume(case_id)
        pair = Pair(case_id, mask, mask, store.cases[case_id].spacing_mm)
        assert stored_case(store, lambda _, pair=pair: pair, preset, case_id).is_oriented == is_oriented


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_the_report_of_a_model_holds_its_training_and_is_linked_from_the_run(run, protocol):
    config = run / "config.yaml"
    config.write_text(re.sub("protocol: .*", f"protocol: {protocol}", config.read_text(encoding="utf-8"), count=1))
    evaluate_model(run, device="cpu", overwrite=True)
    path = run / "evaluation" / "test" / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    headings = ["Summary", "Classes and domains", "Cases", "Views", "Training", "Intensities", "Rules"]
    assert page.of("h2") == headings
    assert {"Loss", "Dice of the training cases, per volume", "Share of the pixels"} <= set(page.of("figcaption"))
    assert "Upright line: from step 2 on, pseudo-labels count." in page.of("p")
    assert page.of("title").count("from step 2 on, pseudo-labels count") == 3
    assert "trained on 3 labeled slices and 6 unlabeled slices" in page.text
    assert len(page.attributes("image")) > 6
    boxes = [svg["viewbox"] for svg in page.attributes("svg")]
    assert "0 0 40 36" in boxes and "0 0 40 9" in boxes  # mm, though the network sees 32 x 32 pixels
    assert str(run.parent) not in path.read_text(encoding="utf-8")
    links = [link["href"] for link in Page((run / "report.html").read_text(encoding="utf-8")).attributes("a")]
    assert "evaluation/test/report.html" in links and (run / "evaluation/test/report.html").is_file()


def test_the_page_of_a_run_is_made_again_on_demand(run):
    (run / "report.html").unlink()
    result = CliRunner().invoke(app, ["info", str(run), "--report"])
    assert result.exit_code == 0 and str(run / "report.html") in result.stderr
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert "4 of 4 steps are done." in page.text and str(run.parent) not in (run / "report.html").read_text(
        encoding="utf-8"
    )
    steps = [entry for entry in RunFolder(run).entries() if "loss" in entry]
    assert steps and "labeled cases (1 scan)" in page.text and "unlabeled cases (2 scans)" in page.text
    shutil.move(run.parent / "store", run.parent / "moved")
    try:
        assert CliRunner().invoke(app, ["info", str(run), "--report"]).exit_code == 0
        assert "cannot be read any more" in (run / "report.html").read_text(encoding="utf-8")
    finally:
        shutil.move(run.parent / "moved", run.parent / "store")
    result = CliRunner().invoke(app, ["info", str(run / "checkpoints" / "best"), "--report"])
    assert result.exit_code == 1 and "is no single run" in result.stderr


def test_a_run_links_to_its_labeled_only_twin(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")

    def links():
        page = Page(write_run_report(folder).read_text(encoding="utf-8"))
        return dict(zip((link["href"] for link in page.attributes("a")), page.of("a"), strict=True))

    shutil.copytree(run, folder.path / "baseline")
    assert links()["baseline/report.html"] == "The labeled-only training"
    assert (folder.path / "baseline/report.html").is_file()
    (folder.path / "baseline/report.html").unlink()
    assert "baseline/report.html" not in links()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _open(browser, folder, **options):
    """The report in a window of its own; with what it says on the console and asks for."""
    page = browser.new_context(**options).new_page()
    told, asked = [], []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
    page.goto((folder / "out" / "report.html").as_uri())
    return page, told, asked


def test_a_browser_has_nothing_to_complain_and_asks_for_nothing(browser, folder):
    page, told, asked = _open(browser, folder)
    slider = page.locator(".view input").first
    before = page.locator(".view output").first.text_content()
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator(".view output").first.text_content() != before
    assert page.locator(".view").first.locator(".slice:visible").count() == 1
    assert page.locator(".view").first.locator("svg:visible image").evaluate("image => image.getBBox().width") > 0
    page.locator("#show-prediction").uncheck()
    assert page.locator(".prediction:visible").count() == 0 and page.locator(".reference:visible").count() > 0
    page.wait_for_timeout(100)
    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [(folder / "out" / "report.html").as_uri()]


def test_a_heading_sorts_the_table(browser, folder):
    page, told, _ = _open(browser, folder)
    column = page.locator("table.sortable tbody tr td:nth-child(5)")
    button = page.locator("table.sortable thead th:nth-child(5) button")
    for order in (1, -1):
        button.click()
        values = [float(text) for text in column.all_text_contents()]
        assert values == sorted(values, reverse=order < 0) and len(set(values)) > 1
    assert told == []


@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_its_window_and_follows_the_colour_scheme(browser, folder, width):
    seen = {}
    for scheme in ("light", "dark"):
        page, told, _ = _open(browser, folder, viewport={"width": width, "height": 800}, color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        colours = page.evaluate("['color', 'backgroundColor'].map(k => getComputedStyle(document.documentElement)[k])")
        seen[scheme] = [_brightness(colour) for colour in colours]
        assert told == []
    assert seen["light"][1] > 0.9 > 0.3 > seen["light"][0]
    assert seen["dark"][0] > 0.7 > 0.2 > seen["dark"][1]


def _brightness(colour):
    return np.mean([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255


def test_without_its_script_the_page_shows_one_slice_of_each_view(browser, folder):
    page, _, _ = _open(browser, folder, java_script_enabled=False)
    assert page.locator(".slice:visible").count() == page.locator(".view").count() == 9
    assert page.locator(".view input:visible").count() == 0


def test_in_print_there_is_nothing_to_operate(browser, folder):
    page, _, _ = _open(browser, folder, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("input:visible").count() == page.locator("nav:visible").count() == 0
    assert page.locator(".slice:visible").count() == 9
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert _brightness(background) == 1  # paper is white, whatever the screen is
