"""Which addresses are public, and which URLs are accepted."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_magic.images.http.public_addresses import UrlTarget, is_public, parse_url

NOT_PUBLIC = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",  # metadata of clouds that is not link-local: Alibaba, ...
    "161.26.0.7",
    "166.11.255.255",
    "168.63.129.16",
    "192.0.0.192",
    "192.80.8.124",
    "199.36.153.4",
    "199.36.153.11",
    "fd00:ec2::254",
    "fd20:ce::254",
    "::ffff:168.63.129.16",
    "64:ff9b::a83f:8110",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a83f:8110::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2606:4700::5efe:10.0.0.1",  # ISATAP: an IPv4 address inside
    "2606:4700::200:5efe:8.8.8.8",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "::8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd12::1",
    "fe80::1",
    "fe80::1%eth0",
    "2606:4700::1111%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_private_addresses_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "168.63.129.17",
        "199.36.153.3",
        "2606:4700::5eff:a00:1",
        "1.1.1.1",
        "8.8.8.8",
        "100.128.0.1",
        "172.32.0.1",
        "2606:4700::1111",
        "2a00:1450::1",
    ],
)
def test_public_addresses_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_check_is_never_laxer_than_the_standard_library(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    private = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or not address.is_global
    )
    assert not (private and is_public(address))


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://Example.org", UrlTarget("http", "example.org", 80, "/")),
        ("HTTPS://example.org:8443/a%20b?c=ü&d=e#f",
         UrlTarget("https", "example.org", 8443, "/a%20b?c=%C3%BC&d=e")),
        ("http://bücher.example/ä", UrlTarget("http", "xn--bcher-kva.example", 80, "/%C3%A4")),
        ("http://[2606:4700::1111]:81/", UrlTarget("http", "2606:4700::1111", 81, "/")),
        ("http://8.8.8.8/x", UrlTarget("http", "8.8.8.8", 80, "/x")),
    ],
)  # fmt: skip
def test_urls_are_parsed(url: str, target: UrlTarget) -> None:
    assert parse_url(url) == target


def test_host_header_has_ipv6_brackets_and_only_a_nondefault_port() -> None:
    assert parse_url("https://a.example:443/").host_header == "a.example"
    assert parse_url("http://a.example:443/").host_header == "a.example:443"
    assert parse_url("http://[2606:4700::1111]/").host_header == "[2606:4700::1111]"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("gopher://example.org/", "only http and https"),
        ("//example.org/a", "only http and https"),
        ("http://user:secret@example.org/", "user name or a password"),
        ("http://user@example.org/", "user name or a password"),
        ("http://@example.org/", "user name or a password"),
        ("http:///a.png", "names no host"),
        ("http://example.org:0/", "port 0"),
        ("http://example.org:99999/", "not a valid address"),
        ("http://example.org:x/", "not a valid address"),
        ("http://[::1/", "not a valid address"),
        ("http://exa mple.org/", "space or a control"),
        ("http://example.org/a\r\nX: y", "space or a control"),
        ("http://exam_ple!.org/", "host name is not valid"),
        ("http://" + "x" * 70 + ".org/", "host name is not valid"),
        ("http://2130706433/", "host is a number"),
        ("http://0x7f000001/", "host is a number"),
        ("http://0x7f.1/", "host is a number"),
        ("http://127.1/", "host is a number"),
        ("http://0177.0.0.1/", "host is a number"),
        ("http://127.0.0.1./", "host is a number"),
        ("http://1.2.3.4.5/", "host is a number"),
        ("http://[fe80::1%25eth0]/", "one network interface"),
        ("http://example.org/" + "x" * 9000, "longer than 8192"),
        ("http://example.org:" + "-1" * 900, r"not a valid address \(.{1,130}\)$"),
    ],
)
def test_refused_urls_name_the_reason(url: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        parse_url(url)
    assert "secret" not in str(caught.value)


@given(st.text(max_size=60))
def test_any_text_parses_or_raises_value_error(text: str) -> None:
    for url in (text, f"http://{text}", f"http://example.org/{text}"):
        try:
            target = parse_url(url)
        except ValueError:
            continue
        assert target.path.isascii()
        assert target.host.isascii()
        assert not set(target.path + target.host) & set(" \r\n\t")
