"""[host] Several seeds of one run trained together: a step of all is one compiled function, by vmap over what trains.

Each run has its own folder, as if it had been trained alone; what it is there differs by rounding only. Images, models
and channels must allow a step to be one compiled function: the auditor asks questions, in tokens that all models read.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from auditdm_jax.channels import instructions_of
from auditdm_jax.config import TrainConfig
from auditdm_jax.log import Log
from auditdm_jax.step import make_joint_step
from auditdm_jax.training import (
    cast_of,
    load_players,
    open_run,
    probe_copy,
    probed,
    share_tokens,
    step_settings,
    train,
)


def train_jointly(configs: Sequence[TrainConfig]) -> list[Path]:
    """Runs or resumes trainings that differ in name and seed alone; returns their folders.

    One after another where they have no step in common, or stopped at different ones.
    """
    config = configs[0]
    players, settings = load_players(config), step_settings(config)
    fused = config.probing.channels == ("question",) and not config.grpo.max_resamples and share_tokens(players)
    runs = [open_run(each, players, settings) for each in configs] if fused else []
    if len({run.first for run in runs}) != 1:
        for run in runs:
            run.checkpoints.close()
        return [train(each) for each in configs]
    step = make_joint_step(cast_of(players, instructions_of(config)), settings)
    states, first = [run.state for run in runs], runs[0].first
    with ExitStack() as stack:
        logs = [stack.enter_context(Log(run.folder, run.first, config.steps)) for run in runs]

        def probe(number: int) -> None:
            batches = [next(run.held_out) for run in runs]
            found = step([probe_copy(state) for state in states], [batch["image"] for batch in batches])
            for log, (_, metrics, record), batch in zip(logs, found, batches, strict=True):
                log.write(number, probed(metrics, record, batch, players.auditor))

        if first == 0:
            probe(0)
        for number in range(first + 1, config.steps + 1):
            done = step(states, [next(run.source)["image"] for run in runs])
            states = [state for state, _, _ in done]
            for log, (_, metrics, _) in zip(logs, done, strict=True):
                log.step(number, metrics)
            last = number == config.steps
            if number % config.probe_every == 0 or number % config.checkpoint_every == 0 or last:
                for log in logs:
                    log.flush()
            if number % config.probe_every == 0 or last:
                probe(number)
            if number % config.checkpoint_every == 0 or last:
                for run, state in zip(runs, states, strict=True):
                    run.save(number, state)
    return [run.close(state, players.auditor) for run, state in zip(runs, states, strict=True)]
