"""Encoders without transformers against transformers itself."""

import pytest
import small_checkpoints as small
import torch
from test_loading import SMALL, pictures, sounds

from emilib.features import light, loading

ROLES = ("vision", "audio", "text")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    for role in ROLES:
        encoder = SMALL[f"small {role}"]()
        for parameter in encoder.model.parameters():  # no norm is 1, no bias is 0
            parameter.data += 0.1 * torch.randn_like(parameter)
        loading.save_encoder(encoder, base / role)
    return base


@torch.no_grad()
@pytest.mark.parametrize("role", ROLES)
def test_the_same_numbers_as_transformers(folders, role):
    ours, theirs = light.load(folders / role).eval(), loading.load_encoder(folders / role).eval()
    assert isinstance(ours.model, light.Network)
    assert (ours.dim, ours.settings) == (theirs.dim, theirs.settings)
    texts = [*small.TEXTS, "x" * 300, "", "Ünknown — 字 words " * 30]
    batch = {"vision": lambda: (pictures(50, 60),), "audio": lambda: sounds()[1:]}
    batch = batch.get(role, lambda: tuple(theirs.tokens(texts).values()))()
    if role == "text":
        for name, ids in theirs.tokens(texts).items():
            assert torch.equal(ids, ours.tokens(texts)[name])
    first, second = ours(*batch), theirs(*batch)
    if role == "audio":
        assert torch.equal(first[1], second[1])
        first, second = first[0][first[1]], second[0][second[1]]
    print(role, (first - second).abs().max(), second.std())
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_other_networks_are_left_to_transformers(tmp_path):
    small.clip_folder(tmp_path)
    assert light.load(tmp_path) is None
