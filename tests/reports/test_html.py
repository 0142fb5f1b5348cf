import dataclasses
import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.reports import examples, plan_results
from tests.reports.golden import check_golden
from tests.reports.html_page import Page, words
from vramtune.errors import FileError
from vramtune.reports.html import write_report

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
NOUNS = plan_results.report_nouns(PROFILE, PLAN)


def report_html(**nouns):
    """The page that is written for some nouns."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        write_report(path, **nouns)
        return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def html():
    return report_html(**NOUNS)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_page_equals_the_golden_file(html):
    check_golden("report.html", re.sub(r"<svg.*?</svg>", "<svg/>", html, flags=re.DOTALL))


def test_equal_nouns_give_equal_pages(html):
    assert report_html(**NOUNS) == html


def test_page_fetches_nothing_and_runs_nothing(page):
    assert not {"script", "img", "iframe", "object", "embed"} & set(page.tags)
    assert all(target.startswith(("data:,", "#")) for target in page.values("href") + page.values("xlink:href"))
    assert not page.values("src")
    assert any(value.startswith("default-src 'none'") for value in page.values("content"))
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_styles_refer_to_nothing_outside_the_page(html):
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", html))


def test_ids_are_unique_and_every_reference_has_its_id(page):
    assert [name for name, count in Counter(page.values("id")).items() if count > 1] == []
    assert set(page.values("aria-labelledby")) <= set(page.values("id"))


def test_page_has_what_a_screen_reader_needs(page, html):
    assert "<!DOCTYPE html>" in html
    assert page.values("lang") == ["en"]
    assert "<title>StableDiffusionXLPipeline in 6.00 GiB of GeForce RTX 4060 - vramtune</title>" in html
    assert page.tags.count("h1") == 1
    assert html.count("<svg") == html.count('role="img"') == page.tags.count("figcaption") == 7
    assert page.tags.count("table") == html.count('<table class="grid" aria-label=')
    assert len(page.values("scope")) == page.tags.count("th") > 0


def test_verdict_comes_first_then_why_then_the_sections(html):
    headings = re.findall(r"<h2[^>]*>([^<]*?)\s*<", html)
    assert html.index("verdict good") < html.index("<h2")
    assert headings == [
        "Why",
        "Predicted beside measured",
        "Beside the stock diffusers modes",
        "The call, stage by stage",
        "With less memory, or more",
        "What each component costs",
        "What this holds for",
    ]


def test_page_of_a_profile_and_a_plan_has_no_other_sections():
    html = report_html(profile=PROFILE, plan=PLAN)
    assert html.count("<svg") == 1
    assert "Fits predicted Peak 5.95 GiB within 6.00 GiB." in words(html)
    assert "measured" not in words(html).replace("measured was read from the device", "")


def test_page_names_call_device_and_versions(html):
    text = words(html)
    for fact in ("height 1024", "memory 8.00 GiB", "float16 rate 60 TFLOP/s", "memory rate 272 GB/s"):
        assert fact in text
    versions = dataclasses.replace(PLAN, versions={"torch": "2.13.0"})
    assert "torch 2.13.0" in words(report_html(profile=PROFILE, plan=versions))


def test_names_from_the_nouns_are_escaped():
    evil = "<script>alert('x')</script>&"
    plan = dataclasses.replace(
        PLAN,
        pipeline_class=evil,
        device_name=evil,
        reasons=(dataclasses.replace(PLAN.reasons[1], stage=evil),),
        versions={evil: evil},
        workload=dataclasses.replace(PLAN.workload, call_kwargs={"prompt": evil}),
        stages=tuple(dataclasses.replace(stage, name=evil + stage.name) for stage in PLAN.stages),
    )
    component = dataclasses.replace(PROFILE.components[-1], name=evil, class_name=evil)
    profile = dataclasses.replace(PROFILE, pipeline_class=evil, components=(*PROFILE.components[:-1], component))
    html = report_html(**plan_results.report_nouns(profile, plan))
    assert "script" not in Page(html).tags
    assert html.count(evil) == 0
    assert words(html).count(evil) > 10


def test_measured_peak_above_the_budget_is_marked_bad():
    measurement = plan_results.measurement(PLAN, peak_bytes=PLAN.budget_bytes + 1)
    html = report_html(profile=PROFILE, plan=PLAN, measurement=measurement)
    assert '<p class="verdict bad"><strong>Over the budget</strong>' in html
    assert '<dd class="meter over"' in html


def test_page_is_written_as_utf_8():
    plan = dataclasses.replace(PLAN, device_name="Ein Fuchs im Schnee: 狐狸, µs")
    assert "狐狸, µs" in report_html(profile=PROFILE, plan=plan)


def test_file_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(FileError, match="nowhere"):
        write_report(tmp_path / "nowhere" / "report.html", profile=PROFILE, plan=PLAN)
