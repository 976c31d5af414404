"""The table of what registries do differently."""

import pytest

from appliance_builder.quirks import TABLE, Mode, limit_doubt, limit_problems, quirks_for

GIB = 1024**3


@pytest.mark.parametrize(
    ("host", "title"),
    [
        ("ghcr.io", "GitHub"),
        ("public.ecr.aws", "Amazon ECR Public"),
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", "Amazon ECR"),
        ("gcr.io", "Google"),
        ("eu.gcr.io", "Google"),
        ("europe-docker.pkg.dev", "Google"),
        ("team.azurecr.io", "Azure"),
        ("docker.io", "Docker Hub"),
        ("quay.io", "Quay"),
        ("swr.cn-north-4.myhuaweicloud.com", "Huawei Cloud SWR"),
        ("company.jfrog.io", "Artifactory"),
        ("harbor.example.com:8443", "Harbor"),
        ("HARBOR.example.com", "Harbor"),
        ("registry.example.com", ""),
        ("127.0.0.1:5000", ""),
        ("[::1]:5000", ""),
        ("notghcr.io", ""),
    ],
)
def test_a_host_finds_its_row(host: str, title: str) -> None:
    assert quirks_for(host).title == title


def test_every_row_says_where_it_comes_from() -> None:
    assert all(row.note and row.title and row.hosts for row in TABLE)


def test_rows_that_send_chunks_say_how_large() -> None:
    chunked = [row for row in TABLE if Mode.CHUNKED in (row.mode, row.mode_known)]

    assert chunked
    assert all(row.chunk_bytes for row in chunked)


def test_no_row_sends_one_put_without_a_digest() -> None:
    assert all(row.mode is not Mode.WHOLE for row in TABLE)


def test_the_users_chunk_size_wins() -> None:
    quirks = quirks_for("ghcr.io", chunk_bytes=123)

    assert quirks.chunk_bytes == 123
    assert quirks.mode_for(digest_known=True) is quirks.mode_for(digest_known=False) is Mode.CHUNKED
    assert quirks.layer_max_bytes == quirks_for("ghcr.io").layer_max_bytes


@pytest.mark.parametrize(
    ("host", "sizes", "words"),
    [
        ("registry.example.com", [500 * GIB] * 100, []),
        ("ghcr.io", [9 * GIB, 5], []),
        ("ghcr.io", [5, 19_851_336_256], [["10.0 GB", "19.9 GB"]]),
        ("ghcr.io", [10 * 1000**3 + 1], [["10.0 GB", "10.1 GB"]]),
        ("public.ecr.aws", [10_000 * 1024**2 + 1], [["10.4 GB", "10.5 GB"]]),
        ("swr.cn-north-4.myhuaweicloud.com", [1] * 21, [["20 layers", "has 21"]]),
        ("swr.cn-north-4.myhuaweicloud.com", [20 * GIB] * 21, [["20 layers"], ["10.0 GB", "21.5 GB"]]),
        ("quay.io", [19_851_336_256], []),
        ("quay.io", [404 * 1000**3], [["20.0 GB", "404.0 GB"]]),
        ("team.azurecr.io", [200 * GIB], []),
        ("team.azurecr.io", [404 * 1000**3], [["214.7 GB", "404.0 GB"]]),
        ("ghcr.io", [], []),
    ],
)
def test_limits_are_told_before_anything_is_sent(host: str, sizes: list[int], words: list[list[str]]) -> None:
    problems = limit_problems(host, sizes)

    assert len(problems) == len(words)
    for problem, expected in zip(problems, words, strict=True):
        assert host in problem
        assert all(word in problem for word in expected)


@pytest.mark.parametrize("host", ["registry.lan:5000", "harbor.lan"])
def test_a_layer_that_s3_may_end_is_warned_of(host: str) -> None:
    doubt = limit_doubt(host, [5, 404 * 1000**3]) or ""

    assert all(word in doubt for word in (host, "404.0 GB", "S3", "104.8 GB"))


@pytest.mark.parametrize(
    ("host", "sizes"), [("registry.lan", [99 * 1000**3]), ("registry.lan", []), ("team.azurecr.io", [150 * 1000**3])]
)
def test_nothing_is_doubted_where_a_limit_is_known_or_far(host: str, sizes: list[int]) -> None:
    assert limit_doubt(host, sizes) is None
