"""A training that is stopped again and again."""

from __future__ import annotations

from flashlips_core.train.loop.trainer import Trainer


def run_with_stops(make_network, make_batch, step, config, stops):
    """All losses and the weights worth keeping of a run that is stopped, saved and resumed at each of ``stops``."""
    losses, trainer = [], None
    for stop in stops:
        trainer = Trainer(make_network(), config)
        trainer.resume()
        while trainer.step < stop:
            losses.append(trainer.update(make_batch, step)["fit"])
        trainer.save()
    return losses, trainer.best().state_dict()
