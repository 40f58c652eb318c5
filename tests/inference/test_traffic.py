"""The rate of a client, and numbers about requests."""

import random

from limbeck.inference import traffic
from limbeck.inference.traffic import Rate, Traffic


def test_a_client_gets_its_rate_and_a_second_of_it_at_once():
    rate, admitted, now = Rate(10), 0, 100.0
    rng = random.Random(0)
    while now < 160.0:
        wait = rate.wait("a", now)
        admitted += wait == 0
        assert 0 <= wait <= 0.1 + 1e-9
        now += rng.expovariate(50)
    assert 590 <= admitted <= 611
    assert sum(rate.wait("b", 200.0) == 0 for _ in range(50)) == 10


def test_who_waits_as_long_as_it_was_told_is_admitted():
    rate, now = Rate(0.5), 0.0
    assert rate.wait("a", now) == 0
    wait = rate.wait("a", now)
    assert wait == 2.0 and rate.wait("a", now + 1.9) > 0 and rate.wait("a", now + wait) == 0


def test_no_limit():
    assert all(Rate(0).wait("a", 0.0) == 0 for _ in range(100))


def test_an_address_beside_it_is_the_same_client_in_ipv6_alone():
    rate = Rate(1)
    assert rate.wait("2001:db8::1", 0.0) == 0 < rate.wait("2001:db8::ffff:2", 0.0)
    assert rate.wait("2001:db8:0:1::1", 0.0) == 0
    assert rate.wait("::ffff:10.0.0.1", 0.0) == 0 < rate.wait("10.0.0.1", 0.0)
    assert rate.wait("::ffff:10.0.0.2", 0.0) == 0
    assert rate.wait("fe80::1%eth0", 0.0) == 0 and rate.wait("no:address", 0.0) == 0


def test_not_every_client_of_the_world_is_remembered(monkeypatch):
    monkeypatch.setattr(traffic, "_CLIENTS", 100)
    rate = Rate(1)
    for number in range(1000):
        assert rate.wait(f"client {number}", float(number) / 1e6) == 0
    assert len(rate._left) == 100 and rate.wait("client 999", 1e-3) > 0


def test_a_histogram_counts_each_request_once_and_in_its_place():
    seen = Traffic()
    times = [1e-5, 5e-5, 6e-5, 0.0015, 0.5, 11.0, 1000.0]
    for seconds in times:
        seen.request("/lookup", 200, seconds)
    seen.request("/health", 200, 5.0)
    values = dict(line.rsplit(" ", 1) for line in seen.lines() if "lookup_seconds" in line and line[0] != "#")
    assert float(values["limbeck_lookup_seconds_sum"]) == sum(times)
    for name, count in (("5e-05", 2), ("0.0001", 3), ("0.002", 4), ("0.001", 3), ("1", 5), ("10", 5), ("+Inf", 7)):
        assert values[f'limbeck_lookup_seconds_bucket{{le="{name}"}}'] == str(count)
    assert values["limbeck_lookup_seconds_count"] == str(len(times))
