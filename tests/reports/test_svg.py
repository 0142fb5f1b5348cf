import re
from xml.etree import ElementTree

import pytest

from tests.reports import examples, plan_results
from vramtune.reports.svg import svg_of

PROFILE, PLAN = examples.sdxl(), examples.sdxl_plan()
TIMELINE = plan_results.timeline(PROFILE, PLAN)


@pytest.fixture(scope="module")
def picture():
    return svg_of(TIMELINE.plot_peaks, name="peaks")


def test_a_picture_is_one_svg_element_with_a_role_and_a_name(picture):
    root = ElementTree.fromstring(picture.svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert (root.get("role"), root.get("aria-labelledby")) == ("img", "peaks-caption")


def test_the_title_becomes_the_caption(picture):
    assert picture.caption.startswith("What is on the GPU at the peak of each stage")
    assert "peak of each stage" not in picture.svg


def test_words_stay_words_in_the_pages_own_font(picture):
    words = {element.text for element in ElementTree.fromstring(picture.svg).iter("{http://www.w3.org/2000/svg}text")}
    assert "GPU memory (GiB)" in words
    assert "font-family" not in picture.svg


def test_ids_are_the_pictures_own_and_every_reference_has_one(picture):
    ids = re.findall(r'\bid="([^"]*)"', picture.svg)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("peaks-") for name in ids)
    assert set(re.findall(r'href="#([^"]*)"', picture.svg) + re.findall(r"url\(#([^)]*)\)", picture.svg)) <= set(ids)


def test_greys_follow_the_theme_and_dark_colours_are_lifted(picture):
    greys = re.findall(r"#([0-9a-f]{2})\1\1\b", picture.svg)
    assert set(greys) <= {"ff"}, "white is what dark colours are lifted with"
    assert "color-mix(in srgb, var(--ink) 75%, var(--paper))" in picture.svg, "the context, #404040"
    assert "color-mix(in srgb, #0072b2, #ffffff var(--lift))" in picture.svg, "the first component"
    assert "fill: #009e73" in picture.svg, "the third is light enough"


def test_nothing_depends_on_chance_or_the_date(picture):
    assert svg_of(TIMELINE.plot_peaks, name="peaks") == picture
    assert "dc:date" not in picture.svg
