"""Checks of network addresses and URLs from which images may be fetched."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from mlx_magic.formatting import reason

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NOT_PUBLIC_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier NAT
            "127.0.0.0/8",
            # Services of cloud providers within public ranges, which are reachable only from their
            # machines and may expose private data.
            "161.26.0.0/16",  # IBM
            "166.8.0.0/14",  # IBM
            "168.63.129.16/32",  # Azure's wire server
            "192.80.8.124/32",  # Equinix Metal's metadata
            "199.36.153.4/30",  # Google's restricted services
            "199.36.153.8/30",  # Google's private services
            "169.254.0.0/16",  # link-local, cloud metadata
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, broadcast
        ),
    )
)
# All allocated IPv6 addresses are in 2000::/3, which excludes loopback, link-local, unique local,
# multicast, IPv4-mapped and NAT64 (64:ff9b::/96) addresses.
_GIVEN_OUT_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # Teredo and other protocols
            "2001:db8::/32",
            "2002::/16",  # 6to4: an IPv4 address inside
            "3fff::/20",
        ),
    )
)
_NUMBER = re.compile(r"(0[xX][0-9a-fA-F]*|[0-9]+)")
_MAX_LENGTH = 8_192
_CONTROL = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class UrlTarget:
    """A checked and parsed URL.

    Attributes
    ----------
    scheme : str
        ``"http"`` or ``"https"``.
    host : str
        ASCII name or address, lower case, without brackets.
    port : int
    path : str
        Quoted path and query, as sent to the server.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def host_header(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = {"http": 80, "https": 443}[self.scheme]
        return host if self.port == usual else f"{host}:{self.port}"


def is_public(address: IPAddress) -> bool:
    """Return whether an address belongs to the public internet.

    False for private, loopback, link-local, multicast, reserved, documentation and carrier-NAT
    addresses, and for IPv6 addresses that contain an IPv4 address (mapped, NAT64, 6to4, Teredo),
    which could lead into a private network.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not any(address in net for net in _NOT_PUBLIC_V4)
    # An address with a scope (fe80::1%eth0) belongs to one network interface.
    if address.scope_id is not None or address not in _GIVEN_OUT_V6:
        return False
    # ISATAP: the last 8 bytes are 0000:5efe or 0200:5efe and an IPv4 address.
    if (int(address) >> 32) & 0xFDFF_FFFF == 0x0000_5EFE:
        return False
    return not any(address in net for net in _NOT_PUBLIC_V6)


def parse_url(url: str) -> UrlTarget:
    """Parse a URL, and refuse those that are not plain http or https.

    Raises
    ------
    ValueError
        If it must not be fetched. The message continues the text "URL was not fetched: ".
    """
    if len(url) > _MAX_LENGTH:
        raise ValueError(f"it is longer than {_MAX_LENGTH} characters")
    if _CONTROL.search(url):
        raise ValueError("it has a space or a control character in it; write it as %20")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"it is not a valid address ({reason(error)})") from error
    if parts.scheme not in ("http", "https"):
        raise ValueError("only http and https addresses are fetched")
    if parts.username is not None or parts.password is not None:
        raise ValueError("it has a user name or a password, which are not sent")
    if port == 0:
        raise ValueError("port 0 is not valid")
    path = quote(parts.path or "/", safe="%/:=&~+!$,;'@()*")
    if parts.query:
        path += "?" + quote(parts.query, safe="%/:=&?~+!$,;'@()*[]")
    return UrlTarget(
        scheme=parts.scheme,
        host=_plain_host(parts.hostname or ""),
        port=port or {"http": 80, "https": 443}[parts.scheme],
        path=path,
    )


def _plain_host(host: str) -> str:
    if not host:
        raise ValueError("it names no host")
    if "%" in host:  # fe80::1%eth0
        raise ValueError("its address belongs to one network interface")
    if ":" in host:
        return str(ipaddress.ip_address(host))
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise ValueError("its host name is not valid") from error
    if not re.fullmatch(r"[a-z0-9._-]+", name):
        raise ValueError("its host name is not valid")
    # 2130706433, 0x7f.1 and 127.1 are 127.0.0.1 to a C library.
    if _NUMBER.fullmatch(name.rstrip(".").rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise ValueError("its host is a number; write an address as four numbers") from None
    return name
