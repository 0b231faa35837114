"""One clock for a file whose own clock jumps: joined recordings, broadcasts, cameras that were set anew while they ran.

What comes after a jump goes on where everything before it ended, sound and picture by the same amount, so that they stay
together and no time is spent on the gap.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import av

from .pyav import fraction

logger = logging.getLogger(__name__)

CLOCK_ANYWHERE = 0x200  # FFmpeg's AVFMT_TS_DISCONT: broadcast containers, whose clock starts at any value and may jump
LONGEST_GAP_S = 60  # nothing at all for longer than this is a clock that jumped, not a still picture
LONGEST_BROADCAST_GAP_S = 10  # as FFmpeg's own tools have it for such containers
BACK_S = Fraction(1, 20)  # decoding times only grow, give or take; without them, pictures may be stored out of order
BACK_UNORDERED_S = 2
SAME_JUMP_S = 1  # jumps of two streams that differ by less are one


class Joins:
    """Moves the times of packets, which must come in the file's order, of all the streams that are read together."""

    def __init__(self, container: av.container.InputContainer, path: str | Path) -> None:
        self.limit = LONGEST_BROADCAST_GAP_S if container.format.flags & CLOCK_ANYWHERE else LONGEST_GAP_S
        self.path = path
        self.shifts: dict[int, Fraction] = {}  # seconds by stream, once it has jumped
        self.ends: dict[int, Fraction] = {}  # when what has been read of a stream ends
        self.jumps = [Fraction(0)]  # the shifts so far, in seconds, of whichever stream jumped first

    def mend(self, packet: av.Packet) -> None:
        """Move one packet to its place after everything that jumped before it."""
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is None or not packet.size:
            return
        tick, index = fraction(packet.time_base), packet.stream.index
        shift = self.shifts.get(index, Fraction(0))
        start = stamp * tick + shift
        if self._jumps(start, index, is_ordered=packet.dts is not None):
            shift += self._back(start, shift, index)
            self.shifts[index] = shift
            start = stamp * tick + shift
        if shift:
            ticks = round(shift / tick)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks
        self.ends[index] = max(self.ends.get(index, start), start + (packet.duration or 0) * tick)

    def _jumps(self, start: Fraction, index: int, is_ordered: bool) -> bool:
        if not self.ends:
            return False
        last = self.ends.get(index)
        back = BACK_S if is_ordered else BACK_UNORDERED_S
        return start - max(self.ends.values()) > self.limit or (last is not None and last - start > back)

    def _back(self, start: Fraction, shift: Fraction, index: int) -> Fraction:
        """How much further to move a stream that has just jumped: as another one was before, or to the end of all."""
        end = self.ends.get(index, max(self.ends.values()))
        for known in reversed(self.jumps):
            if abs(start - shift + known - end) < SAME_JUMP_S:
                return known - shift
        moved = max(self.ends.values()) - start
        self.jumps.append(shift + moved)
        logger.debug("%s: the clock jumps by %.3f s", Path(self.path).name, -float(moved))
        return moved
