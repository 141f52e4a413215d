"""Where a mixture goes on that isn't made up as it was when its checkpoint was written."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..packing import Position


class Before(NamedTuple):
    """A source at the checkpoint."""

    rows: str
    """Fingerprint."""
    documents: int
    taken: int
    """Documents, in all passes."""


def mixed_start(place: Position, before: dict[str, Any], now: dict[str, Any]) -> Position:
    """Each source goes on after the rows that it has given, be the weights or the batch size others; other rows begin
    with their first pass. Where an epoch is as long as before, it goes on too.

    Raises ValueError where a pass that has begun can't be finished.

    before, now: `TextDataModule.counted`, then and now.
    """
    if "mix" not in now:
        return Position(place.step, place.epoch)
    counts = before["mix"]["documents"] if "mix" in before else [before["documents"]]
    taken = place.taken or (place.epoch * counts[0] + place.documents,)
    earlier = list(map(Before, before["rows"].split(","), counts, taken))
    found = []
    for rows, documents in zip(now["rows"].split(","), now["mix"]["documents"], strict=True):
        source = next((one for one in earlier if one.rows == rows), None)
        if source is None:
            found.append(0)
            continue
        earlier.remove(source)
        passes, rest = divmod(source.taken, source.documents)
        if rest and (before["seed"] != now["seed"] or source.documents != documents):
            raise ValueError(
                f"the checkpoint of step {place.step} stands in the middle of a source's rows (of {rest:,} of its "
                f"{source.documents:,} documents in this pass), and the rest can't be told from what was trained on "
                "once seed, data.sequence_length or data.over_long is another: give what was given then"
            )
        found.append(passes * documents + rest)
    same = all(before.get(name) == now[name] for name in ("rows", "tokens", "mix"))
    return place._replace(taken=tuple(found)) if same else Position(place.step, place.epoch, 0, tuple(found))
