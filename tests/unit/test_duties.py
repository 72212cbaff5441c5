"""The log of who did what at a hub."""

from fleets import NOW
from heliograph_hub.database import Database
from heliograph_hub.duties import Duties


def test_what_is_noted_while_the_log_is_written_is_not_lost(tmp_path):
    """An epoch begins in the thread that answers a node; the log may be written between any two of its steps."""
    database = Database(tmp_path / "hub.sqlite")
    log = Duties(database)

    def keyids():
        log.flush()
        yield b"k" * 32

    log.note_later(NOW, "hub", "the first")
    log.note_later(NOW, "hub", "the second", keyids())
    log.flush()
    assert [done.what for done in log.newest(9)] == ["the second", "the first"]
    database.close()
