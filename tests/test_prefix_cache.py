from types import SimpleNamespace

import pytest
import torch
from test_loading import tiny_folder
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import DynamicLayer

from workbench.models.loading import load
from workbench.models.prefix_cache import NAME, PLAIN, Prefixes, SharedLayer, attend, prefix_attention, supports

WIDTH = 8


def filled(n_prefixes: int, n_heads: int, n_tokens: int) -> DynamicLayer:
    layer = DynamicLayer()
    layer.update(*torch.randn(2, n_prefixes, n_heads, n_tokens, WIDTH))
    return layer


def plain(query, layer, mask, scaling):
    """Attention by torch alone, every row's prefix copied in front of its own tokens, key heads repeated."""
    keys, values = (
        torch.cat([shared[layer.prefixes.of_row], own], 2)
        for shared, own in ((layer.prefixes.keys, layer.keys), (layer.prefixes.values, layer.values))
    )
    times = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(times, 1), values.repeat_interleave(times, 1)
    return scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling).transpose(1, 2)


@pytest.mark.parametrize("n_key_heads", [4, 2, 1])
@pytest.mark.parametrize("n_tokens", [1, 3])
@pytest.mark.parametrize("masked", [True, False])
def test_it_is_plain_attention_over_prefix_and_rest(n_key_heads, n_tokens, masked):
    torch.manual_seed(0)
    of_row = torch.tensor([0, 0, 0, 2, 2, 1])
    layer = SharedLayer(filled(3, n_key_heads, 5), of_row, n_tokens=9)
    layer.update(*torch.randn(2, 6, n_key_heads, 4, WIDTH))
    keys, values = layer.update(*torch.randn(2, 6, n_key_heads, n_tokens, WIDTH))
    query = torch.randn(6, 4, n_tokens, WIDTH)
    mask = None
    if masked:
        mask = torch.rand(6, 1, n_tokens, layer.get_seq_length()) < 0.6
        mask[..., 6] = True
    asking = SimpleNamespace(num_key_value_groups=4 // n_key_heads, is_causal=False)
    got, _ = attend(asking, query, keys, values, mask, scaling=0.3)
    assert got.shape == (6, n_tokens, 4, WIDTH)
    torch.testing.assert_close(got, plain(query, layer, mask, 0.3))
    if n_tokens == 1:
        # The scale that torch takes when none is given.
        torch.testing.assert_close(attend(asking, query, keys, values, mask)[0], plain(query, layer, mask, None))


def test_rows_that_leave_take_nothing_from_those_that_stay():
    torch.manual_seed(0)
    layer = SharedLayer(filled(3, 2, 5), torch.tensor([0, 0, 1, 1, 2]), n_tokens=6)
    layer.update(*torch.randn(2, 5, 2, 2, WIDTH))
    own = layer.keys.clone()
    layer.batch_select_indices(torch.tensor([1, 4]))
    assert layer.prefixes.spans == [(0, 0, 1), (2, 1, 2)]
    assert layer.get_seq_length() == 7
    torch.testing.assert_close(layer.keys, own[[1, 4]])
    keys, values = layer.update(*torch.randn(2, 2, 2, 1, WIDTH))
    assert keys.shape[2] == 3 and torch.equal(keys[:, :, :2], own[[1, 4]])
    query = torch.randn(2, 2, 1, WIDTH)
    got, _ = attend(SimpleNamespace(), query, keys, values, None)
    torch.testing.assert_close(got, plain(query, layer, None, None))


def test_a_prefix_is_kept_once_however_many_rows_share_it():
    layer = SharedLayer(filled(2, 2, 50), torch.arange(2).repeat_interleave(100), n_tokens=3)
    layer.update(*torch.randn(2, 200, 2, 1, WIDTH))
    assert layer.prefixes.keys.shape == (2, 2, 50, WIDTH) and layer.keys.shape == (200, 2, 1, WIDTH)
    assert Prefixes(layer.prefixes.keys, layer.prefixes.values, torch.tensor([1])).spans == [(1, 0, 1)]


def test_what_a_model_asks_for_beyond_scaling_is_left_to_plain_attention():
    torch.manual_seed(0)
    layer = SharedLayer(filled(1, 2, 4), torch.tensor([0, 0]), n_tokens=2)
    keys, values = layer.update(*torch.randn(2, 2, 2, 1, WIDTH))
    query = torch.randn(2, 2, 1, WIDTH)
    bias = torch.zeros(2, 2, 1, 5)
    bias[..., 0] = 50.0
    asking = SimpleNamespace(is_causal=False)
    got, _ = attend(asking, query, keys, values, None, position_bias=bias)
    first = layer.prefixes.values[0, :, 0].expand(2, 2, WIDTH)
    torch.testing.assert_close(got[:, 0], first, atol=1e-4, rtol=1e-4)


def test_the_model_attends_as_before_after_the_block(tmp_path):
    model = load(tiny_folder(tmp_path / "model"), device="cpu").model
    assert supports(model)
    with pytest.raises(RuntimeError, match="inside"), prefix_attention(model):
        assert model.config._attn_implementation == NAME
        raise RuntimeError("inside")
    assert model.config._attn_implementation == PLAIN
    model.set_attn_implementation("eager")
    assert not supports(model)
