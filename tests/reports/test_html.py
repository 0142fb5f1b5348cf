import dataclasses
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser

import pytest

from tests.reports import examples, seen
from tests.reports.golden import check_golden
from vramtune.reports.html import report_html, write_report

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
NOUNS = seen.report_nouns(PROFILE, PLAN)
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """What is on a page; refuses tags that do not close in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, name):
        return [value for attribute, value in self.attributes if attribute == name]


@pytest.fixture(scope="module")
def html():
    return report_html(**NOUNS)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def words(text):
    """The page without its head, pictures and tags."""
    body = re.sub(r"<svg.*?</svg>", "", text[text.index("<body") :], flags=re.DOTALL)
    return " ".join(" ".join(Page(f"<html>{body}").text).split())


def test_a_page_reads_as_it_did(html):
    check_golden("report.html", re.sub(r"<svg.*?</svg>", "<svg/>", html, flags=re.DOTALL))


def test_equal_nouns_give_equal_pages(html):
    assert report_html(**NOUNS) == html


def test_nothing_is_fetched_and_nothing_runs(page):
    assert not {"script", "img", "iframe", "object", "embed"} & set(page.tags)
    assert all(
        target.startswith(("data:,", "#")) for target in page.values("href") + page.values("xlink:href")
    )
    assert not page.values("src")
    assert any(value.startswith("default-src 'none'") for value in page.values("content"))
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_no_style_reaches_out(html):
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", html))


def test_ids_are_unique_and_every_reference_has_one(page):
    assert [name for name, count in Counter(page.values("id")).items() if count > 1] == []
    assert set(page.values("aria-labelledby")) <= set(page.values("id"))


def test_the_page_can_be_read_aloud(page, html):
    assert "<!DOCTYPE html>" in html
    assert page.values("lang") == ["en"]
    assert "<title>StableDiffusionXLPipeline in 6.00 GiB of GeForce RTX 4060 - vramtune</title>" in html
    assert page.tags.count("h1") == 1
    assert html.count("<svg") == html.count('role="img"') == page.tags.count("figcaption") == 7
    assert page.tags.count("table") == html.count('<table class="grid" aria-label=')
    assert len(page.values("scope")) == page.tags.count("th") > 0


def test_the_verdict_comes_first_then_why_then_the_rest(html):
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


def test_what_is_not_given_is_not_there():
    html = report_html(profile=PROFILE, plan=PLAN)
    assert html.count("<svg") == 1
    assert "Fits predicted Peak 5.95 GiB of 6.00 GiB." in words(html)
    assert "measured" not in words(html).replace("measured was read from the device", "")


def test_the_environment_is_named(html):
    text = words(html)
    for fact in ("height 1024", "memory 8.00 GiB", "float16 rate 60 TFLOP/s", "memory rate 272 GB/s"):
        assert fact in text
    versions = dataclasses.replace(PLAN, versions={"torch": "2.13.0"})
    assert "torch 2.13.0" in words(report_html(profile=PROFILE, plan=versions))


def test_everything_is_escaped():
    evil = "<script>alert('x')</script>&"
    plan = dataclasses.replace(
        PLAN,
        pipeline_class=evil,
        device_name=evil,
        reasons=(evil,),
        versions={evil: evil},
        workload=dataclasses.replace(PLAN.workload, call_kwargs={"prompt": evil}),
        stages=tuple(dataclasses.replace(stage, name=evil + stage.name) for stage in PLAN.stages),
    )
    component = dataclasses.replace(PROFILE.components[-1], name=evil, class_name=evil)
    profile = dataclasses.replace(
        PROFILE, pipeline_class=evil, components=(*PROFILE.components[:-1], component)
    )
    html = report_html(**{**NOUNS, "profile": profile, "plan": plan})
    assert "script" not in Page(html).tags
    assert html.count(evil) == 0
    assert words(html).count(evil) > 10


def test_a_peak_above_the_budget_is_not_green():
    measurement = seen.measurement(PLAN, peak_bytes=PLAN.budget_bytes + 1)
    html = report_html(profile=PROFILE, plan=PLAN, measurement=measurement)
    assert '<p class="verdict bad"><strong>Over the budget</strong>' in html
    assert '<dd class="meter over"' in html


def test_a_report_is_written_as_utf_8(tmp_path):
    plan = dataclasses.replace(PLAN, reasons=("Ein Fuchs im Schnee: 狐狸, µs.",))
    write_report(tmp_path / "report.html", profile=PROFILE, plan=plan)
    assert "狐狸, µs." in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_report_from_a_saved_profile_takes_under_three_seconds_and_no_torch(tmp_path):
    """Of the processor, from the interpreter's start on: planning, comparison, frontier and pictures included."""
    examples.flux().save(tmp_path / "profile.json")
    code = (
        "import sys, time, vramtune\n"
        "profile = vramtune.Profile.load('profile.json')\n"
        "vramtune.report(profile, vramtune.plan(profile, 7), 'report.html')\n"
        "print(time.process_time(), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    seconds, has_torch = done.stdout.split()
    assert has_torch == "False"
    assert float(seconds) < 3
    assert (tmp_path / "report.html").stat().st_size > 100_000
