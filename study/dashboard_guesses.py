"""How fast the dashboard's password can be guessed: an address that was wrong a few times waits, longer each time."""

import ipaddress
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

_WITHOUT_WAIT = 4
"""Wrong passwords of somebody who mistypes."""
_LONGEST_WAIT_S = 60
_FORGOTTEN_AFTER_S = 15 * 60


@dataclass(frozen=True)
class _Wrong:
    count: int
    last: float
    until: float


class Guesses:
    """The wrong passwords of each address, counted for all threads of a server."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wrong: dict[str, _Wrong] = {}
        """Ordered by the last one."""

    def wait_s(self, address: str, *, right: bool) -> float:
        """How long an address has to wait that has just sent a password, right or not; 0: it counts, let in if right.

        Nothing that is sent while waiting counts, a right password neither: else it could be found all the same. Nor
        does a right one end the count: at an address of several people it would give a guesser new tries.
        """
        host = _host(address)
        with self._lock:
            now = self._clock()
            self._forget(before=now - _FORGOTTEN_AFTER_S)
            known = self._wrong.get(host)
            if known is not None and now < known.until:
                return known.until - now
            if right:
                return 0
            count = known.count + 1 if known is not None else 1
            doublings = count - _WITHOUT_WAIT - 1
            wait_s = 0 if doublings < 0 else min(2 ** min(doublings, 10), _LONGEST_WAIT_S)
            self._wrong.pop(host, None)
            self._wrong[host] = _Wrong(count, last=now, until=now + wait_s)
        if wait_s:
            logger.warning("%d wrong passwords from %s: none from there counts for %d s", count, host, wait_s)
        return wait_s

    def _forget(self, *, before: float) -> None:
        while self._wrong and next(iter(self._wrong.values())).last < before:
            del self._wrong[next(iter(self._wrong))]


def _host(address: str) -> str:
    """Who counts as one: an IPv4 address, or the 2^64 of IPv6 that a host is given."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return str(ip.ipv4_mapped)
        return f"{ipaddress.IPv6Address(int(ip) >> 64 << 64)}/64"
    return str(ip)
