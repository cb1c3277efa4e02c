"""The replay buffer: bytes per stored step, and the time to insert and to sample."""

from __future__ import annotations

import torch
from benchmarks.common import (
    EPISODE_LIMIT,
    Table,
    make_args,
    make_batch,
    median_seconds,
)
from benchmarks.reference import EpisodeBatch

from assembly import scheme_of
from components.episode_buffer import ReplayBuffer
from utils.memory import keep_freed_memory

PYMARL2_BYTES = 3501  # per step of 6h_vs_8z
TARGETS = {"float32": 0.75, "float16": 0.4}


def run(quick: bool) -> list[Table]:
    """Memory and time of both ways to store observations and states."""
    keep_freed_memory()
    torch.set_num_threads(1)
    args = make_args()
    steps, episodes = EPISODE_LIMIT + 1, 256 if quick else 1024
    batch = make_batch(args, [steps] * 8, steps, terminated=False)
    memory = Table(
        "replay_memory",
        "Replay buffer, bytes per stored step (6h_vs_8z's shapes)",
        ("stored", "bytes", "of PyMARL2's", "target"),
        note="PyMARL2's 3,501 bytes were counted there; PyMARL2-style: what "
        "benchmarks/reference.py stores.",
    )
    times = Table(
        "replay_time",
        f"Replay buffer of {episodes} episodes of {steps} steps, one thread",
        ("operation", "ours, float32 [ms]", "ours, float16 [ms]", "PyMARL2 [ms]"),
        note="PyMARL2's figures were measured elsewhere, on a 2-core x86 machine.",
    )
    inserted, sampled = [], []
    for dtype, target in TARGETS.items():
        scheme, groups, preprocess = scheme_of(args)
        buffer = ReplayBuffer(
            scheme, groups, episodes, steps, preprocess=preprocess, dtype=getattr(torch, dtype)
        )
        size = buffer.nbytes() / (episodes * steps)
        memory.add(f"ours, {dtype}", f"{size:,.0f}", f"{size / PYMARL2_BYTES:.3f}", f"<= {target}")
        for _ in range(episodes // 8):
            buffer.insert_episode_batch(batch)
        inserted.append(median_seconds(lambda b=buffer: b.insert_episode_batch(batch), 50))
        sampled.append(median_seconds(lambda b=buffer: b.sample(128), 15))
    stepping = EpisodeBatch(args, 1, 1).nbytes_per_step()
    memory.add("PyMARL2-style", f"{stepping:,.0f}", f"{stepping / PYMARL2_BYTES:.3f}", "")
    times.add("insert 8 episodes", *(f"{seconds * 1000:.2f}" for seconds in inserted), "0.7")
    times.add("sample 128 episodes", *(f"{seconds * 1000:.1f}" for seconds in sampled), "27")
    return [memory, times]
