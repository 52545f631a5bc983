"""A table of addresses and tricks: what a stranger's ``url`` may lead to, and what not."""

import asyncio
from ipaddress import ip_address

import pytest

from app.documents.safe_http import SafeHttp
from app.errors import UrlRefused
from app.settings import Settings

PUBLIC = [
    ("http://8.8.8.8/", "8.8.8.8"),
    ("https://8.8.8.8/", "8.8.8.8"),
    ("http://8.8.8.8:443/a?b=c#d", "8.8.8.8"),
    ("http://1.1.1.1:80/", "1.1.1.1"),
    ("HTTP://9.9.9.9/", "9.9.9.9"),
    ("http://172.32.0.1/", "172.32.0.1"),
    ("http://100.128.0.1/", "100.128.0.1"),
    ("http://168.63.129.17/", "168.63.129.17"),
    ("http://0x08080808/", "8.8.8.8"),
    ("http://[2001:4860:4860::8888]/", "2001:4860:4860::8888"),
    ("http://[2606:4700::1111]:443/", "2606:4700::1111"),
    ("http://[::ffff:8.8.8.8]/", "::ffff:8.8.8.8"),
    ("http://[2001:4860::5efd:808:808]/", "2001:4860::5efd:808:808"),
]
REFUSED = [
    # this machine, in many spellings
    *("http://127.0.0.1/", "http://127.0.0.1.:80/", "http://localhost/", "http://LOCALHOST/", "http://127.1/"),
    *("http://2130706433/", "http://0x7f000001/", "http://0177.0.0.1/", "http://0/", "http://0.0.0.0/"),
    *("http://127.255.255.254/", "http://[::1]/", "http://[::]/", "http://[0:0:0:0:0:ffff:7f00:1]/"),
    *("http://[::ffff:127.0.0.1]/", "http://[::127.0.0.1]/", "http://[::ffff:0:127.0.0.1]/"),
    # private and shared networks
    *("http://10.0.0.1/", "http://10.255.255.255/", "http://172.16.0.1/", "http://172.31.255.255/"),
    *("http://192.168.0.1/", "http://100.64.0.1/", "http://100.127.255.255/", "http://[fd00::1]/"),
    *("http://[fc00::1]/", "http://[fec0::1]/", "http://[::ffff:10.0.0.1]/"),
    # link-local, and where clouds serve secrets to their machines
    *("http://169.254.169.254/latest/meta-data/", "http://169.254.170.2/", "http://[fe80::1]/"),
    *("http://[fd00:ec2::254]/", "http://168.63.129.16/", "http://[::ffff:168.63.129.16]/", "http://192.0.0.192/"),
    *("http://100.100.100.200/", "http://[fe80::a9fe:a9fe]/", "http://2852039166/"),
    # IPv4 inside IPv6: mapped, translated, tunnelled
    *("http://[64:ff9b::a00:1]/", "http://[64:ff9b:1::a00:1]/", "http://[2002:a00:1::]/", "http://[2002:7f00:1::]/"),
    *("http://[2001::7f00:1]/", "http://[2001:4860::5efe:a00:1]/", "http://[2001:4860::200:5efe:7f00:1]/"),
    # documentation, benchmarks, protocol assignments, multicast, reserved
    *("http://192.0.2.1/", "http://198.51.100.1/", "http://203.0.113.1/", "http://198.18.0.1/", "http://192.88.99.1/"),
    *("http://[2001:db8::1]/", "http://[3fff::1]/", "http://[3fff:fff:ffff::1]/", "http://[100::1]/"),
    *("http://[5f00::1]/", "http://224.0.0.1/", "http://240.0.0.1/", "http://255.255.255.255/", "http://[ff02::1]/"),
    # ports
    *("http://8.8.8.8:22/", "http://8.8.8.8:25/", "http://8.8.8.8:0/", "http://[2001:4860:4860::8888]:6379/"),
    # no plain address
    *("file:///etc/passwd", "gopher://8.8.8.8/", "ftp://8.8.8.8/", "//8.8.8.8/", "8.8.8.8", "http://", "http:///x"),
    *("http://user:password@8.8.8.8/", "http://8.8.8.8@10.0.0.1/", "http://10.0.0.1#@8.8.8.8/"),
    *("http://8.8.8.8:99999/", "http://[::1", "http://a b/", "http://\x00/", "http://xn--a/"),
    *("http://" + "a" * 3000, "http://" + "a" * 70 + "/", "http://a..b/", "javascript:alert(1)", "http://10.0.0.1\\@8.8.8.8/"),
]  # fmt: skip


def check(url: str) -> str:
    async def run() -> str:
        http = SafeHttp(Settings())
        try:
            _, address = await http.check(url)
        finally:
            await http.close()
        return address

    return asyncio.run(run())


def test_the_table_is_long_and_says_nothing_twice() -> None:
    assert len({*REFUSED, *(url for url, _ in PUBLIC)}) == len(REFUSED) + len(PUBLIC) >= 60


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_not_public_is_refused(url: str) -> None:
    with pytest.raises(UrlRefused):
        check(url)


@pytest.mark.parametrize(("url", "address"), PUBLIC)
def test_what_is_public_is_reached_at_the_address_that_was_checked(url: str, address: str) -> None:
    assert ip_address(check(url)) == ip_address(address)
