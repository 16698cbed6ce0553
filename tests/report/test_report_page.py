"""The HTML page is complete and escaped, and is written as a whole or not at all."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from xentx.compare import Plan, compare
from xentx.compare.html import render_html, write_html
from xentx.compare.report import Library

HOSTILE = "</script><script>alert('x')</script><!-- & \"quoted\""

INTERRUPTED = """
import sys, time
from pathlib import Path
from xentx.compare import Plan, compare
from xentx.compare.html import write_html

def replace(self, target):
    print("written", flush=True)
    time.sleep(60)

Path.replace = replace
report = compare(Plan(frameworks=("numpy",), losses=("numpy:*",), regimes=(), timed=False))
write_html(report, Path(sys.argv[1]))
"""


def embedded(page):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found.group(1))


def without_plotly(page):
    scripts = page.split("<script>")
    return "".join(part for part in scripts if "plotly.js v" not in part)


def test_it_holds_every_loss_regime_and_corner(page, report):
    text = page.read_text("utf-8")
    for loss in report.losses:
        assert loss.id in text
    for corner in report.corners:
        assert f'id="corner-{corner.name}"' in text
    data = embedded(text)
    assert [loss["id"] for loss in data["losses"]] == [loss.id for loss in report.losses]
    assert [heat["dtype"] for heat in data["heat"]] == ["float32", "float16"]
    assert len(data["corners"]) == len(report.corners)


def test_the_findings_come_first(page, report):
    text = page.read_text("utf-8")
    findings = re.findall(
        r"<li>(.*?)</li>", text.split('<ul class="findings">')[1].split("</ul>")[0]
    )
    assert len(findings) == 4  # two dtypes, confident rows, corner cases
    assert "kinds of logits in float32: 1 of 1. Largest error of xentx: 0." in findings[0]
    assert findings[-1].endswith("xentx deviates in 0.")
    assert text.index(findings[0]) < text.index('id="accuracy"')
    counts = embedded(text)["deviations"]["counts"]
    natives = {loss.id for loss in report.losses if not loss.is_xentx}
    assert sum(map(sum, counts)) == sum(
        any(r.verdict == "deviates" for r in corner.results if r.loss in natives)
        for corner in report.corners
    )


def test_it_refers_to_nothing_outside(page):
    text = without_plotly(page.read_text("utf-8"))
    assert not re.search(r'\b(src|srcset)=|@import|url\(|<link(?! rel="icon" href="data:,")', text)
    assert "default-src 'none'" in text


def test_texts_of_other_libraries_are_escaped(report):
    losses = (*report.losses[:-1], replace(report.losses[-1], name=HOSTILE, caveat=HOSTILE))
    corner = replace(report.corners[0], title=HOSTILE, rule=HOSTILE)
    text = render_html(
        replace(report, losses=losses, corners=(corner,), failures=(HOSTILE,), passed=False)
    )
    assert HOSTILE not in text
    assert "<script>alert" not in text
    assert embedded(text)["corners"][0]["title"] == HOSTILE


def test_a_framework_that_fails_to_import_is_listed_with_the_error(report):
    problem = "fails to import: ImportError: libcudart.so.12: cannot open shared object file"
    library = Library(name="torch", version="2.13.0", problem=problem)
    text = render_html(replace(report, libraries=(*report.libraries, library)))
    assert problem in text


def test_a_page_of_an_empty_comparison():
    report = compare(Plan(frameworks=("numpy",), losses=("numpy:*",), regimes=(), timed=False))
    text = render_html(report)
    assert 'id="porting"' in text
    assert 'id="accuracy"' not in text


def test_a_page_replaces_another_and_leaves_no_other_file(report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("earlier")
    write_html(report, path)
    assert path.read_text("utf-8").endswith("</html>\n")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("earlier", [None, "earlier"])
def test_killed_midway_it_leaves_the_earlier_page_or_none(tmp_path, earlier):
    path = tmp_path / "report.html"
    if earlier is not None:
        path.write_text(earlier)
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "written\n"
        process.send_signal(signal.SIGKILL)
    assert (path.read_text() if path.exists() else None) == earlier


def test_a_failure_leaves_no_file(report, tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_html(report, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
