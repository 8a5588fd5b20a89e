"""Two processes with four and two images must normalise, learn and remember as one process with the whole batch."""

import multiprocessing
import os
import socket

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from cam_pipeline.models.shared_batch_norm import share_batch_norm

BATCH = 6


def network(kind):
    torch.manual_seed(0)
    layer = {
        "plain": lambda: nn.BatchNorm2d(5),
        "with an activation": lambda: BatchNormAct2d(5),
        "without weights": lambda: nn.BatchNorm2d(5, affine=False),
        "of cumulative momentum": lambda: nn.BatchNorm2d(5, momentum=None),
        "without memory": lambda: nn.BatchNorm2d(5, track_running_stats=False),
        "frozen": lambda: nn.BatchNorm2d(5).eval(),
    }[kind]()
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return nn.Sequential(nn.Conv2d(3, 5, 3), layer, nn.Conv2d(5, 2, 1))


def learn(layers, images):
    """Two steps' outputs, gradients and statistics; the second loss looks at some images more than at others."""
    found = []
    for scale in (1.0, 3.0):
        layers.zero_grad()
        given = (images * scale).requires_grad_()
        out = layers(given)
        (out.square() * given.mean(dim=(1, 2, 3), keepdim=True).detach()).sum().backward()
        found.append((out.detach(), given.grad, [parameter.grad for parameter in layers.parameters()]))
    return found, list(layers[1].buffers())


def part_of_the_work(kind, rank, port, answer):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    layers, images = network(kind), torch.randn(BATCH, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    share_batch_norm(layers)
    steps, buffers = learn(layers, images[:4] if rank == 0 else images[4:])
    for _, _, gradients in steps:
        for gradient in gradients:
            dist.all_reduce(gradient)
    answer.send([[(o.numpy(), g.numpy(), [p.numpy() for p in ps]) for o, g, ps in steps], [b.numpy() for b in buffers]])
    dist.destroy_process_group()


def in_two_processes(kind):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context, answers, processes = multiprocessing.get_context("fork"), [], []
    for rank in range(2):
        receiver, sender = context.Pipe(duplex=False)
        processes.append(context.Process(target=part_of_the_work, args=(kind, rank, port, sender), daemon=True))
        processes[-1].start()
        sender.close()
        answers.append(receiver)
    assert all(receiver.poll(60) for receiver in answers)
    found = [receiver.recv() for receiver in answers]
    for process in processes:
        process.join()
    return found


@pytest.mark.parametrize(
    "kind",
    ["plain", "with an activation", "without weights", "of cumulative momentum", "without memory", "frozen"],
)
def test_two_parts_are_normalised_as_one_batch(kind):
    images = torch.randn(BATCH, 3, 9, 7, generator=torch.Generator().manual_seed(1))
    steps, buffers = learn(network(kind), images)
    first, second = in_two_processes(kind)
    for step, (out, to_images, to_weights) in enumerate(steps):
        parts = [worker[0][step] for worker in (first, second)]
        for whole, position in ((out, 0), (to_images, 1)):
            both = torch.cat([torch.from_numpy(part[position]) for part in parts])
            torch.testing.assert_close(both, whole, rtol=1e-4, atol=1e-4)
        for number, whole in enumerate(to_weights):
            torch.testing.assert_close(torch.from_numpy(parts[0][2][number]), whole, rtol=1e-4, atol=1e-3)
    for worker in (first, second):
        for own, whole in zip(worker[1], buffers, strict=True):
            torch.testing.assert_close(torch.from_numpy(own), whole, rtol=1e-5, atol=1e-5)
    assert bool(buffers) != (kind == "without memory")
