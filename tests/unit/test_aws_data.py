"""What botocore's clients know without the data that is left out."""

from __future__ import annotations

from typing import Any

import botocore.session
import pytest

from mailroom.transports.aws_data import lighten

REGIONS = ("us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1", "us-iso-east-1", "not-yet-known-1")


def client(service: str, region: str, *, light: bool) -> Any:
    session = botocore.session.Session()
    session.set_credentials("key", "secret")
    if light:
        lighten(session)
    return session.create_client(service, region_name=region)


@pytest.mark.slow
@pytest.mark.parametrize("service", ["ses", "sesv2", "sqs", "sts", "sso", "sso-oidc"])
def test_a_client_calls_the_same_place_and_signs_alike(service: str) -> None:
    for region in REGIONS:
        light, whole = client(service, region, light=True), client(service, region, light=False)
        assert whole.meta.endpoint_url == light.meta.endpoint_url
        signers = [
            (one._request_signer.signing_name, one._request_signer.region_name) for one in (whole, light)
        ]
        assert signers[0] == signers[1]


@pytest.mark.parametrize(("service", "operation"), [("ses", "GetTemplate"), ("sesv2", "SendBulkEmail")])
def test_the_operations_and_their_shapes_are_all_there(service: str, operation: str) -> None:
    light, whole = (client(service, "us-east-1", light=light).meta.service_model for light in (True, False))
    assert whole.operation_names == light.operation_names
    for name in ("input_shape", "output_shape"):
        shapes = [getattr(model.operation_model(operation), name).members for model in (whole, light)]
        assert {n: repr(s) for n, s in shapes[0].items()} == {n: repr(s) for n, s in shapes[1].items()}
    assert whole.operation_model(operation).documentation
    assert not light.operation_model(operation).documentation
