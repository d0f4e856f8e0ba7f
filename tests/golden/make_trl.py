"""Makes trl.npz: losses and gradients of TRL's own trainers, against which `policy_gradient_loss` is tested.

    pip install "trl==1.16.0" "transformers==5.24.0" "torch==2.13.0" accelerate datasets && python make_trl.py

Made with these versions, on a CPU, in float32. Everything from rewards to loss is TRL's, around a model of one layer:
`_generate_and_score_completions` (advantages, importance weights, masks of truncated completions) and `_compute_loss`
of GRPOTrainer and RLOOTrainer. Only two methods are replaced: `_generate`, by completions of given lengths, and, but
for the case of the temperature, `_get_per_token_logps_and_entropies`, by given log-probabilities, whose gradient is
recorded. vLLM is not needed for its importance weights: the flag is set after the trainer is made.

TRL multiplies the KL in the loss by the ratio unless told otherwise, since 1.10; the presets do not, so it is told.

For each case: arrays [6, B, T] (logps, old, reference's, sampler's, mask, dloss / dlogps), rewards, loss, and as JSON
the preset, the overrides and the group size that the door is to be called with.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer.utils import split_tensor_dict

ROWS, LENGTH, MAX_LENGTH, EOS, WORDS = 16, 5, 7, 1, 12
TRL = {  # what a preset is in TRL's words
    "grpo@trl": dict(loss_type="grpo"),
    "bnpo@trl": dict(loss_type="bnpo"),
    "dr_grpo@trl": dict(loss_type="dr_grpo", scale_rewards="none"),
    "dapo@trl": dict(loss_type="dapo", epsilon_high=0.28),
    "cispo@trl": dict(loss_type="cispo", epsilon_high=5.0),
    "gspo@trl": dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=3e-4, epsilon_high=4e-4),
    "rloo@trl": dict(beta=0.05),
}
GRADED = (0.9, 0.2, 0.4, 0.6, 1.0, 0.0, 0.0, 0.3, 0.7, 0.1, 0.8, 0.8, 0.2, 0.5, 1.0, 0.1)
FLAT = (1.0,) * 4 + GRADED[4:]  # the first group without signal
MISSING = (None, *GRADED[1:9], None, None, *GRADED[11:])


def example(shift, spread=0.3, drift=0.1):
    """Log-probabilities of completions that have each length from 1 to LENGTH."""
    rng = np.random.default_rng(0)
    logps = -rng.exponential(1.5, (ROWS, LENGTH))
    old, ref = (logps + rng.normal(0, spread, logps.shape) for _ in range(2))
    old += shift * (np.array(GRADED)[:, None] - 0.5)
    sampling = old + rng.normal(0, drift, logps.shape)
    lengths = np.arange(ROWS) % LENGTH + 1
    return [torch.tensor(x, dtype=torch.float32) for x in (logps, old, ref, sampling)], lengths


def make_trainer(folder, preset, group_size, rewards, accumulation, **settings):
    vocabulary = {"<pad>": 0, "<eos>": EOS} | {f"w{i}": i for i in range(2, WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    if not (folder / "config.json").exists():
        torch.manual_seed(0)
        size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, **size, pad_token_id=0, eos_token_id=EOS)).save_pretrained(
            folder
        )
    of_kind = (RLOOConfig, RLOOTrainer) if preset.startswith("rloo") else (GRPOConfig, GRPOTrainer)
    config = of_kind[0](
        output_dir=str(folder / "out"), use_cpu=True, bf16=False, report_to="none", num_generations=group_size,
        per_device_train_batch_size=ROWS // accumulation, gradient_accumulation_steps=accumulation,
        max_completion_length=MAX_LENGTH, gradient_checkpointing=False, **(TRL[preset] | settings),
    )  # fmt: skip

    def reward(completions, **_):
        return list(rewards)

    data = Dataset.from_dict({"prompt": ["w2"] * ROWS})
    trainer = of_kind[1](str(folder), reward, args=config, train_dataset=data, processing_class=tokenizer)
    trainer.current_gradient_accumulation_steps = accumulation
    trainer.model.train()
    return trainer


def loss_of(trainer, arrays, lengths, unfinished, sampler, own_logps):
    """TRL's loss, summed over micro-batches, for given log-probabilities; the arrays as they were used."""
    leaf = arrays[0].clone().requires_grad_()
    recorded, position = {}, iter(range(0, ROWS, trainer.args.per_device_train_batch_size))
    rng = np.random.default_rng(1)
    ids = [
        [int(x) for x in rng.integers(2, WORDS, n - 1)] + [2 if i in unfinished else EOS] for i, n in enumerate(lengths)
    ]
    ours = trainer._get_per_token_logps_and_entropies

    def given_logps(model, input_ids, *_, compute_entropy=False, **__):
        if compute_entropy:  # only the loss asks for it
            start = next(position)
            rows = leaf[start : start + len(input_ids)]
            return rows, torch.zeros_like(rows), None
        return (arrays[2] if model is trainer.ref_model else arrays[1]), None, None

    def model_logps(model, *arguments, compute_entropy=False, **options):
        logps, entropies, _ = ours(model, *arguments, compute_entropy=compute_entropy, **options)
        if compute_entropy:
            logps.retain_grad()
        recorded["logps" if compute_entropy else "ref" if model is trainer.ref_model else "old"] = logps
        return logps, entropies, None

    def generated(prompts):
        parts = ([[2]] * ROWS, ids, ["w2"] * ROWS)
        if isinstance(trainer, RLOOTrainer):
            return parts
        scores = [row[:n].tolist() for row, n in zip(arrays[3], lengths, strict=True)] if sampler else None
        return parts[0], parts[1], None, parts[2], scores, {}, None, []

    trainer._generate = generated
    trainer._get_per_token_logps_and_entropies = model_logps if own_logps else given_logps
    trainer.use_vllm = sampler
    batch = trainer._generate_and_score_completions([{"prompt": "w2"} for _ in range(ROWS)])
    loss = 0.0
    for part in split_tensor_dict(batch, trainer.args.gradient_accumulation_steps):
        value = trainer._compute_loss(trainer.model, part)
        value.backward()
        loss += float(value.detach())
    extra = {}
    if own_logps:
        inputs = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        attended = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        logits = trainer.model(input_ids=inputs, attention_mask=attended).logits[:, :-1]
        extra = {"logits": logits.detach().numpy(), "ids": batch["completion_ids"].numpy()}
        leaf = recorded["logps"]
        arrays = [leaf, recorded["old"], recorded["ref"], leaf]
    if batch.get("old_per_token_logps") is None and isinstance(trainer, GRPOTrainer):
        arrays = [arrays[0], arrays[0], *arrays[2:]]  # TRL took those of the moment
    stacked = [x.detach().float().numpy() for x in (*arrays, batch["completion_mask"], leaf.grad)]
    return np.stack(stacked), loss, extra


def shift_of(preset):
    """How far the policy moved towards what was rewarded, so that the loss is no small difference of large terms."""
    return 0.4 if preset.startswith("gspo") else -0.8


def cases():
    """(name, preset, what differs from the plainest case)."""
    for preset in TRL:
        kl = {} if preset == "rloo@trl" else {"settings": {"beta": 0.04}}
        yield "unequal lengths", preset, kl
        yield "an empty row", preset, kl | {"unfinished": (5, 9)}
        yield "a group without signal, KL", preset, kl | {"rewards": FLAT}
        yield "a group without signal", preset, {"rewards": FLAT, "settings": {"beta": 0.0}}
        yield "groups of two", preset, kl | {"group_size": 2}
        yield "far outside the clip", preset, kl | {"spread": 3.0}
        yield "no reward", preset, kl | {"rewards": MISSING}
    for preset in ("grpo@trl", "dapo@trl", "dr_grpo@trl"):
        yield "delta", preset, {"spread": 3.0, "settings": {"delta": 1.9}}
    for preset in ("grpo@trl", "bnpo@trl", "dr_grpo@trl", "dapo@trl", "cispo@trl"):
        yield "four micro-batches", preset, {"accumulation": 4, "settings": {"beta": 0.04}}
    for scale in ("batch", "none"):
        yield f"scaled by {scale}", "grpo@trl", {"rewards": MISSING, "settings": {"scale_rewards": scale, "beta": 0.2}}
    for preset in ("dapo@trl", "dr_grpo@trl", "cispo@trl"):
        yield "ratios of sequences", preset, {"settings": {"importance_sampling_level": "sequence", "beta": 0.04}}
    for mode in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"):
        bounds = {"vllm_importance_sampling_clip_max": 1.3, "vllm_importance_sampling_clip_min": 0.8}
        settings = bounds | {"vllm_importance_sampling_mode": mode, "beta": 0.04}
        yield f"sampler's drift, {mode}", "grpo@trl", {"sampler": True, "drift": 0.2, "settings": settings}
    yield "sampler's drift", "gspo@trl", {"sampler": True, "drift": 0.7}
    yield "clip ranges", "grpo@trl", {"settings": {"epsilon": 0.1, "epsilon_high": 0.4}}
    for preset in ("grpo@trl", "dapo@trl", "gspo@trl", "cispo@trl"):
        corrected = {"beta": 0.04, "use_bias_correction_kl": True}
        yield "KL times the ratio", preset, {"settings": corrected}
    yield "one iteration", "dapo@trl", {"settings": {"num_iterations": 1, "beta": 0.1}}
    yield "temperature", "grpo@trl", {"own_logps": True, "settings": {"temperature": 0.7, "beta": 0.3}}


def main():
    out = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, preset, case in cases():
            group_size, rewards = case.get("group_size", 4), case.get("rewards", GRADED)
            settings = {"num_iterations": 2} | case.get("settings", {})
            kl = {} if preset == "rloo@trl" else {"use_bias_correction_kl": False}
            accumulation = case.get("accumulation", 1)
            trainer = make_trainer(Path(folder), preset, group_size, rewards, accumulation, **(kl | settings))
            if own := case.get("own_logps", False):
                with torch.no_grad():
                    for weights in trainer.ref_model.parameters():
                        weights += 0.3 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(2))
            arrays, lengths = example(shift_of(preset), case.get("spread", 0.3), case.get("drift", 0.1))
            if unfinished := case.get("unfinished", ()):
                trainer.mask_truncated_completions = True
            stacked, loss, extra = loss_of(trainer, arrays, lengths, unfinished, case.get("sampler", False), own)
            overrides = {key.removeprefix("vllm_"): value for key, value in settings.items() if key != "temperature"}
            setting = {"preset": preset, "group_size": group_size, "accumulation": accumulation, "overrides": overrides}
            setting |= {"sampler": case.get("sampler", False), "temperature": settings.get("temperature", 1.0)}
            setting["overrides"]["max_completion_length"] = MAX_LENGTH
            key = f"{preset}, {name}"
            out[f"{key}/arrays"], out[f"{key}/loss"] = stacked, np.float64(loss)
            out[f"{key}/rewards"] = np.array(rewards, np.float32)
            out[f"{key}/setting"] = np.array(json.dumps(setting))
            out |= {f"{key}/{part}": value for part, value in extra.items()}
            print(f"{key}: {loss:.6f}")
    np.savez_compressed(Path(__file__).with_name("trl.npz"), **out)


if __name__ == "__main__":
    main()
