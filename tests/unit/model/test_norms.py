"""Batch norm over ranks: two processes with half a batch each equal one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from llava.model.multimodal_projector.norms import BatchNorm, ChannelNorm, SyncBatchNorm, kept_statistics

WIDTH = 5


def whole():
    """(maps float[4, C, 3, 3], cotangent of the same shape), the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, WIDTH, 3, 3, generator=generator) * 2 + 1 for _ in range(2)]


def step(norm, maps, cotangent):
    maps = maps.clone().requires_grad_()
    output = norm(maps)
    (output * cotangent).sum().backward()
    return output.detach(), maps.grad


class CountCollectives(TorchDispatchMode):
    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += function.namespace == "c10d"
        return function(*args, **(kwargs or {}))


def whole_batch(rank):
    """One step of a rank with its half of the batch."""
    mine = slice(2 * rank, 2 * rank + 2)
    norm = SyncBatchNorm(WIDTH)
    with CountCollectives() as collectives:
        output, gradient = step(norm, *(part[mine] for part in whole()))
    weight_gradient = norm.weight.grad.clone()
    dist.all_reduce(weight_gradient)
    result = {"output": output, "gradient": gradient, "weight": weight_gradient, "state": norm.state_dict()}
    return {**result, "collectives": collectives.number}


def rank_main(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({"whole": whole_batch(rank), "blank": blank(rank)}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> list[dict]:
    """What each of two ranks computed."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_main, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
def test_two_ranks_are_one_process_with_the_whole_batch(results):
    ranks = [result["whole"] for result in results]
    norm = nn.BatchNorm2d(WIDTH)
    output, gradient = step(norm, *whole())
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(torch.cat([rank["output"] for rank in ranks]), output, **close)
    torch.testing.assert_close(torch.cat([rank["gradient"] for rank in ranks]), gradient, **close)
    for rank in ranks:
        assert rank["collectives"] == 2  # forward and backward
        torch.testing.assert_close(rank["weight"], norm.weight.grad, **close)
        for name, expected in norm.state_dict().items():
            torch.testing.assert_close(rank["state"][name], expected, msg=name, **close)


def blank(rank):
    """Two steps: rank 1 has a blank alone in the first, both have in the second."""
    norm = SyncBatchNorm(WIDTH)
    maps, cotangent = (part[:2] for part in whole())
    zeros = torch.zeros(1, WIDTH, 3, 3)
    if rank == 0:
        output, gradient = step(norm, maps, cotangent)
    else:
        with kept_statistics(norm):
            output, gradient = step(norm, zeros, zeros)
    after_one = {name: value.clone() for name, value in norm.state_dict().items()}
    with kept_statistics(norm):
        blank_output, _ = step(norm, zeros, zeros)
    result = {"output": output, "gradient": gradient, "blank_output": blank_output}
    return {**result, "after_one": after_one, "after_two": norm.state_dict()}


@pytest.mark.slow
def test_a_rank_with_a_blank_alone_takes_part_and_counts_for_nothing(results):
    ranks = [result["blank"] for result in results]
    norm = nn.BatchNorm2d(WIDTH)
    output, gradient = step(norm, *(part[:2] for part in whole()))
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(ranks[0]["output"], output, **close)
    torch.testing.assert_close(ranks[0]["gradient"], gradient, **close)
    for rank in ranks:
        assert rank["blank_output"].isfinite().all()
        for name, expected in norm.state_dict().items():
            torch.testing.assert_close(rank["after_one"][name], expected, msg=name, **close)
            assert torch.equal(rank["after_two"][name], rank["after_one"][name]), name


@pytest.mark.parametrize("training", [True, False])
def test_on_one_rank_it_is_batch_norm(training):
    ours, torchs = SyncBatchNorm(WIDTH).train(training), nn.BatchNorm2d(WIDTH).train(training)
    assert torch.equal(ours(whole()[0]), torchs(whole()[0]))


@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("kind", [BatchNorm, SyncBatchNorm])
def test_the_gradient_is_right_where_tokens_come_in_channels_last_order(kind, num_images):
    maps = whole()[0][:num_images].requires_grad_()
    cotangent = whole()[1][:num_images].flatten(2).transpose(1, 2).contiguous()

    def gradient(norm):
        tokens = norm(maps).flatten(2).transpose(1, 2)
        return torch.autograd.grad((tokens * cotangent).sum(), maps)[0]

    def by_definition(maps):
        mean, variance = maps.mean((0, 2, 3), keepdim=True), maps.var((0, 2, 3), keepdim=True, correction=0)
        return (maps - mean) * torch.rsqrt(variance + 1e-5)

    torch.testing.assert_close(gradient(kind(WIDTH)), gradient(by_definition))


@pytest.mark.parametrize("kind", [BatchNorm, SyncBatchNorm])
def test_on_one_rank_it_learns_no_statistics_of_a_blank(kind):
    norm = kind(WIDTH).train()
    with kept_statistics(norm):
        norm(torch.randn(2, WIDTH, 3, 3))
    assert torch.equal(norm.running_mean, torch.zeros(WIDTH))
    norm(torch.randn(2, WIDTH, 3, 3))
    assert norm.running_mean.abs().max() > 0


def test_channel_norm_is_layer_norm_of_each_position():
    maps = whole()[0]
    expected = nn.functional.layer_norm(maps.permute(0, 2, 3, 1), (WIDTH,)).permute(0, 3, 1, 2)
    torch.testing.assert_close(ChannelNorm(WIDTH)(maps), expected)


def test_several_images_keep_their_gradient_in_the_order_it_came_in():
    """On a GPU, a gradient with another memory order than its maps costs a copy and a slow kernel."""
    maps, cotangent = (part.contiguous(memory_format=torch.channels_last) for part in whole())
    output = BatchNorm(WIDTH)(maps.requires_grad_())
    orders = []
    output.grad_fn.register_prehook(
        lambda gradients: orders.append(gradients[0].is_contiguous(memory_format=torch.channels_last))
    )
    output.backward(cotangent)
    assert orders == [True]
