"""Saves the state of a training, so that it can be stopped at any moment.

A file is written under another name first and then renamed, so it is never half-written.
"""

import os
import time
from pathlib import Path

import torch

RUN = Path(__file__).parent / "run"
EVERY = 120  # seconds between checkpoints


def save(name, state):
    RUN.mkdir(exist_ok=True)
    part = RUN / f"{name}.part"
    torch.save(state, part)
    os.replace(part, RUN / name)


def load(name):
    path = RUN / name
    return torch.load(path, weights_only=True) if path.exists() else None


class Training:
    """The state of one stage, as its checkpoint holds it.

    It consists of the models, the optimizer, the averaged weights, the step and the seconds spent.
    """

    def __init__(self, name, models, groups, decay):
        self.name, self.models, self.decay = name, models, decay
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
        self.step, self.seconds = 0, 0.0
        self.average = {key: value.detach().clone() for key, value in self.weights().items()}
        state = load(f"{name}.pt")
        if state:
            for model, weights in zip(models, state["models"]):
                model.load_state_dict(weights)
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]
            self.average = {key: value.to(next(models[0].parameters()).device) for key, value in self.average.items()}
        self.saved = self.since = time.monotonic()

    def weights(self):
        return {f"{i}.{key}": value for i, model in enumerate(self.models) for key, value in model.named_parameters()}

    def update(self, loss, rate):
        """Makes one step of the optimizer and updates the averages.

        The learning rate of each group is `rate` times its base rate.
        """
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights().values(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * float(rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            weights = self.weights()
            torch._foreach_lerp_(list(self.average.values()), [weights[key] for key in self.average], 1 - decay)
        if time.monotonic() - self.saved > EVERY:
            self.save()

    def elapsed(self):
        """Returns the seconds spent, including the time before a stop."""
        return self.seconds + time.monotonic() - self.since

    def save(self):
        self.seconds = self.elapsed()
        self.saved = self.since = time.monotonic()
        save(
            f"{self.name}.pt",
            {
                "models": [model.state_dict() for model in self.models], "optimizer": self.optimizer.state_dict(),
                "average": self.average, "step": self.step, "seconds": self.seconds,
            },
        )

    def averaged(self):
        """Copies the averages into the models, and returns the models."""
        for key, value in self.weights().items():
            value.data.copy_(self.average[key])
        return self.models
