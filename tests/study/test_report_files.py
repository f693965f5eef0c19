"""A report's file is written anew and never through a link that another user has planted."""

from pathlib import Path

from acuity.study.report import report


def test_planted_links_do_not_lead_a_report_to_another_file(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("another user's file")
    for name in ("report.html", ".report.html.tmp"):
        (tmp_path / name).symlink_to(theirs)
    report._replace(tmp_path / "report.html", "mine")
    assert theirs.read_text() == "another user's file"
    assert (tmp_path / "report.html").read_text() == "mine"
