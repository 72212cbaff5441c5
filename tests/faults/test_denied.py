"""Denials with real processes: flagged, stopped, gone back; and first of all for a node that was cut off."""

from pathlib import Path

from rigs import FIRST, SECOND, THIRD, VITAL, rig


def test_a_last_release_serves_on_when_denied_once_and_stops_when_denied_twice(tmp_path: Path, prepared: Path) -> None:
    with rig(tmp_path / "realm", prepared) as node:
        node.roll_out(FIRST, VITAL)
        node.await_rest(FIRST, VITAL)
        node.deny(f"{VITAL}@{FIRST}", 1)
        node.until(lambda: node.model(VITAL)["flag"], "it is flagged")
        assert node.answer(VITAL) == FIRST, "and serves on"
        node.deny(f"{VITAL}@{FIRST}", 2)
        node.until(lambda: "answered 503" in node.answer(VITAL), "it stopped")
        node.until(lambda: node.phase_of(VITAL) == "stuck", "and is at rest")
        assert node.model(VITAL)["active"] is None
        assert "denied finally" in node.model(VITAL)["reason"]
        assert "no release of vital is active" in node.answer(VITAL)
        assert node.rests_on(FIRST), "other models go on"
        node.restart_out_of_the_blue()
        node.await_rest(FIRST)
        node.until(lambda: "answered 503" in node.answer(VITAL), "a restart revives nothing")


def test_a_node_that_was_cut_off_leaves_what_is_denied_before_it_obeys_anything_else(
    tmp_path: Path, prepared: Path
) -> None:
    with rig(tmp_path / "realm", prepared) as node:
        node.roll_out(SECOND)
        node.until(lambda: node.phase() == "proving" and node.answer() == SECOND, "1.1.0 serves")
        node.road.cut()
        node.until(lambda: not node.is_up(), "the node sees the cut")
        node.roll_out(THIRD)
        node.deny(f"digits@{SECOND}", 1)
        assert node.answer() == SECOND, "it can't know yet"
        node.road.restore()
        node.await_rest(THIRD)
        node.until(node.is_receipted, "every record is receipted")
        events = node.events()
        denied, wanted = events.index("ActiveDenied"), len(events) - 1 - events[::-1].index("Wanted")
        assert denied < wanted, events
        assert (node.model()["fallback"] or {})["release"] == f"digits@{FIRST}", "1.1.0 is never gone back to"
        assert [bool(body["denial"]) for body in node.records("incident", "denied")] == [True]
        node.check_records_once()


def test_all_that_a_denied_key_signed_leaves_but_what_is_kept(tmp_path: Path, prepared: Path) -> None:
    with rig(tmp_path / "realm", prepared) as node:
        node.roll_out(SECOND)
        node.until(lambda: node.phase() == "proving" and node.answer() == SECOND, "1.1.0 serves")
        node.deny_key("sign-digits", [f"digits@{FIRST}"])
        node.await_rest(FIRST)
        assert not node.model()["flag"]
        assert f"digits@{SECOND}" in [r["release"] for r in node.model()["refused"]]
