"""Proves that a kohya command, TOML or accelerate config becomes a job that validates, and no flag is dropped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from clusterft import spec
from clusterft_trainer import migrate
from clusterft_trainer.errors import ConfigError
from clusterft_trainer.migrate import known

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "migrate"
# folder -> the file in it that is migrated; others lie beside it
CASES = {
    "one_card": "train.sh",
    "four_cards_zero2": "run.sh",
    "two_nodes_lora": "train_lora.sh",
    "fused_adafactor": "one_gpu.sh",
    "windows": "train.bat",
    "kohya_toml": "config.toml",
    "data_sets": "data.toml",
    "accelerate_zero3": "node1.yaml",
    "accelerate_fsdp": "fsdp.yaml",
}
SMALL = "accelerate launch sdxl_train.py --pretrained_model_name_or_path=/m.safetensors --train_data_dir=/d "


def of(flags: str, name: str = "train.sh", *, script: str = "sdxl_train") -> migrate.Migration:
    """The migration of one command with these flags."""
    return migrate.run(SMALL.replace("sdxl_train.py", f"{script}.py") + flags, name)


def at(migration: migrate.Migration, path: str) -> Any:
    """A setting below train, or None."""
    value: Any = migration.settings["train"]
    for name in path.split("."):
        if not isinstance(value, dict) or name not in value:
            return None
        value = value[name]
    return value


def left(migration: migrate.Migration) -> dict[str, str]:
    """Why each flag was not carried over."""
    return {entry.flag: f"{entry.why}: {entry.reason}" for entry in migration.unknown}


def same_as_golden(text: str, path: Path) -> None:
    """Compare, or write the golden file anew when asked to."""
    if os.environ.get("CLUSTERFT_UPDATE_GOLDEN") == "1":
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path.name} is missing; CLUSTERFT_UPDATE_GOLDEN=1 writes it"
    assert text == path.read_text(encoding="utf-8")


def loads(migration: migrate.Migration, directory: Path) -> spec.JobSpec:
    """The written job, as the launcher reads it."""
    path = directory / "job.yaml"
    path.write_text(migration.yaml, encoding="utf-8")
    return spec.load(path)


@pytest.mark.parametrize("case", CASES)
def test_a_real_file_becomes_the_job_that_it_should(case: str, tmp_path: Path) -> None:
    path = GOLDEN / case / CASES[case]
    migration = migrate.run(path.read_text(encoding="utf-8"), path.name, migrate.Beside(path))
    same_as_golden(migration.yaml, GOLDEN / case / "job.yaml")
    same_as_golden(migrate.report(migration), GOLDEN / case / "report.txt")
    assert loads(migration, tmp_path).runtime == "docker"


@pytest.mark.parametrize(
    ("flags", "path", "value"),
    [
        # what kohya does when it is told nothing
        ("", "learn.unet", {"rate": 2e-6}),
        ("", "learn.clip", 1.0),
        ("", "learn.weight_decay", 0.01),
        ("", "learn.optimizer", {"name": "adamw"}),
        ("", "learn.schedule", "constant"),
        ("", "learn.text_encoders", None),
        ("", "objective.prediction", "epsilon"),
        ("", "objective.zero_terminal_snr", False),
        ("", "data.crop_ids", "kohya"),
        ("", "precision", "fp32"),
        ("", "engine", {"kind": "ddp"}),
        ("", "steps", 1600),
        ("", "output.dtype", "fp32"),
        ("--full_bf16 --mixed_precision=bf16", "output.dtype", "bf16"),
        ("--deepspeed", "engine", {"kind": "zero", "stage": 2}),
        ("--loss_type=huber", "objective.huber_schedule", "snr"),
        ("--min_snr_gamma=5 --zero_terminal_snr", "objective.snr_of", "plain"),
        ("--lr_scheduler=polynomial", "learn.power", 1.0),
        # what it is told
        ("--train_text_encoder --learning_rate=1e-5", "learn.text_encoders", {"rate": 1e-5}),
        (
            "--train_text_encoder --learning_rate_te2=0 --learning_rate=1e-5",
            "learn.text_encoder_1",
            {"rate": 1e-5},
        ),
        ("--train_text_encoder --learning_rate_te2=0 --learning_rate=1e-5", "learn.text_encoder_2", None),
        (
            "--learning_rate=0 --train_text_encoder --learning_rate_te1 1e-6 --learning_rate_te2 2e-6",
            "learn.unet",
            None,
        ),
        ("--shuffle_caption --keep_tokens=2", "data.captions", {"shuffle": True, "keep": 2}),
        ("--max_grad_norm=0", "learn.clip", None),
        ("--optimizer_type=Lion8bit", "learn.weight_decay", 0.0),
        ("--optimizer_type=torchao.optim.AdamW8bit", "learn.optimizer.name", "ao-adamw-8bit"),
        ("--optimizer_args betas=(0.9,0.95) eps=1e-6", "learn.optimizer.betas", [0.9, 0.95]),
        ("--optimizer_args betas=(0.9,0.95) eps=1e-6", "learn.optimizer.name", "adamw"),
        ("--optimizer_args weight_decay=0.05", "learn.weight_decay", 0.05),
        ("--optimizer_type=Adafactor --fused_backward_pass", "learn.optimizer.fused_backward", True),
        ("--optimizer_type=AdamW8bit --fused_optimizer_groups=10", "learn.optimizer.fused_backward", True),
        ("--min_timestep=100 --max_timestep=900", "objective.timesteps", {"first": 100, "last": 899}),
        ("--max_timestep=1000", "objective.timesteps", None),
        ("--min_timestep=500 --max_timestep=500", "objective.timesteps", {"first": 500, "last": 500}),
        ("--v_parameterization --scale_v_pred_loss_like_noise_pred", "objective.min_snr", 1e6),
        (
            "--loss_type=huber --huber_schedule=constant --huber_c=0.2 --huber_scale=2",
            "objective.huber_delta",
            0.4,
        ),
        ("--resolution=832,1216", "data.resolution", 1024),
        ("--resolution 768", "data.resolution", 768),
        ("--lr_scheduler=cosine_with_min_lr --lr_scheduler_min_lr_ratio=0.1", "learn.floor", 0.1),
        ("--lr_scheduler=cosine --lr_warmup_steps=5% --max_train_steps=1000", "learn.warmup_steps", 50),
        ("--save_every_n_steps=100 --save_last_n_steps=300", "checkpoints.keep", 4),
        ("--save_every_n_epochs=2 --save_state --save_last_n_epochs=3", "checkpoints.keep", 3),
        ("--save_every_n_epochs=2", "output.every_epochs", 2),
        ("--max_train_epochs=3 --max_train_steps=9", "epochs", 3),
        ("--train_batch=6", "batch.per_slot", 6),  # argparse takes a beginning of a name
        ("--train_batch_size=2 --train_batch_size=3", "batch.per_slot", 3),
        ("--network_module=networks.lora", "learn.lora", None),
    ],
)
def test_a_flag_becomes_the_setting_that_trains_alike(
    flags: str, path: str, value: object, tmp_path: Path
) -> None:
    migration = of(flags)
    assert at(migration, path) == value
    loads(migration, tmp_path)


@pytest.mark.parametrize(
    ("flags", "path", "value", "told"),
    [
        ("--optimizer_type=Adafactor --fused_backward_pass", "learn.clip", None, "learn.clip: null"),
        ("--deepspeed --use_8bit_adam", "learn.optimizer.name", "adamw", "adamw instead of adamw-8bit"),
        ("--deepspeed --optimizer_type=CAME", "engine", {"kind": "ddp"}, "ddp instead of zero"),
        ("--deepspeed --full_bf16 --mixed_precision=bf16", "weights", "fp32", "fp32 instead of bf16"),
        ("--deepspeed --optimizer_type=Lion --offload_optimizer_device=cpu", "engine.offload", None,
         "engine.offload: none"),
        ("--full_bf16", "precision", "bf16", "precision: bf16"),
        ("--optimizer_type=AdamWScheduleFree --lr_scheduler=cosine", "learn.schedule", "constant",
         "brings its own"),
        ("--optimizer_type=Prodigy --learning_rate=2.0", "learn.unet.rate", 1.0, "rate of 2 "),
        ("--optimizer_type=Prodigy --learning_rate=1e-6", "learn.unet.rate", 1.0, "prodigy finds the rate"),
        ("--optimizer_type=Adafactor", "learn.optimizer.name", "adafactor", "relative_step"),
        ("--output_name='my model!'", "output.name", "my-model", "cannot be a name here"),
        ("--lr_warmup_steps=100 --lr_scheduler=constant_with_warmup", "learn.warmup_steps", 100,
         "divides a warm-up"),
    ],
)  # fmt: skip
def test_what_cannot_go_together_here_is_settled_aloud(flags: str, path: str, value: object, told: str) -> None:
    migration = of(flags)
    assert at(migration, path) == value
    assert any(told in note for note in migration.notes), migration.notes
    assert f"#   {next(note for note in migration.notes if told in note)}" in migration.yaml


@pytest.mark.parametrize(
    ("flags", "flag", "why"),
    [
        ("--color_aug", "--color_aug", "not possible: pictures are trained as they are"),
        ("--cache_latents", "--cache_latents", "not needed: latents are made as pictures come"),
        ("--skip_cache_check", "--skip_cache_check", "not needed: an entry of the cache is found by"),
        ("--cache_text_encoder_outputs --shuffle_caption", "--cache_text_encoder_outputs",
         "not possible: data.captions.shuffle changes captions"),
        ("--cache_text_encoder_outputs_to_disk --enable_wildcard", "--cache_text_encoder_outputs_to_disk",
         "not possible: data.captions.wildcards changes captions"),
        ("--cache_text_encoder_outputs --train_text_encoder", "--cache_text_encoder_outputs",
         "not possible: what a text encoder says changes"),
        ("--token_warmup_min=3", "--token_warmup_min", "not needed: kohya heeds it with token_warmup_step"),
        ("--token_warmup_step=0.1 --max_train_epochs=3", "--token_warmup_step", "not possible: a share of steps"),
        ("--token_warmup_step=9 --token_warmup_min=-1", "--token_warmup_min", "not possible: one tag"),
        ("--bucket_no_upscale --max_bucket_reso=2048", "--max_bucket_reso", "not needed: kohya ignores it"),
        ("--bucket_reso_steps=48", "--bucket_reso_steps", "not possible: Input should be a multiple of 32"),
        ("--dataset_repeats=3", "--dataset_repeats", "overruled: kohya goes by the numbers"),
        ("--in_json=/m.json --dataset_repeats=0", "--dataset_repeats", "unreadable: is below 1"),
        ("--in_json=/m.json --caption_extension=.txt", "--caption_extension", "not needed: captions come from"),
        ("--secondary_separator=; --caption_separator=|".replace(";", "';'").replace("|", "'|'"),
         "--caption_separator", "not possible: captions are taken apart with"),
        ("--enable_wildcrad", "--enable_wildcrad", "unknown: did you mean enable_wildcard?"),
        ("--xyzzy 5", "--xyzzy", "unknown: neither"),
        ("--train_batch_size=many", "--train_batch_size", "unreadable: is not a whole number"),
        ("--train_batch_size", "--train_batch_size", "unreadable: has no value"),
        ("--train_batch_size=$BATCH", "--train_batch_size", "unreadable: $BATCH is a shell variable"),
        ("--learning_rate=nan", "--learning_rate", "unreadable: is not a number"),
        ("--noise_offset=5", "--noise_offset", "not possible: Input should be less than or equal to 1"),
        ("--max_token_length=100", "--max_token_length", "not possible: Input should be 75, 150 or 225"),
        ("--max_train_epochs=3 --max_train_steps=9", "--max_train_steps", "overruled: "),
        ("--optimizer_type=DAdaptAdam", "--optimizer_type", "not possible: prodigy is written instead"),
        ("--optimizer_args momentum=0.9", "--optimizer_args", "not possible: adamw has"),
        ("--learning_rate_te1=1e-6", "--learning_rate_te1", "not needed: "),
        ("--debiased_estimation_loss --min_snr_gamma=5", "--debiased_estimation_loss",
         "not possible: kohya multiplies"),
        ("--optimizer_type=Adafactor --fused_backward_pass --gradient_accumulation_steps=2",
         "--fused_backward_pass", "not possible: "),
        ("--deepspeed --optimizer_type=AdamW --fused_backward_pass", "--fused_backward_pass", "not possible: "),
        ("--keep_tokens=2", "--keep_tokens", "not needed: kohya heeds it with shuffle_caption"),
        ("--resume=/x", "--resume", "by design: a run resumes by itself"),
        ("--block_lr=1,2", "--block_lr", "unreadable: kohya takes 23"),
        ("--config_file=there.toml", "--config_file", "unreadable: the file is not at hand"),
        ("--sample_prompts=p.txt --sample_every_n_steps=9", "--sample_prompts", "unreadable: "),
        ("stray", "stray", "unknown: a word that belongs to no flag"),
    ],
)  # fmt: skip
def test_a_flag_without_equivalent_is_named_with_the_reason(flags: str, flag: str, why: str) -> None:
    migration = of(flags)
    assert left(migration)[flag].startswith(why)
    assert flag in migration.yaml and flag in migrate.report(migration)


@pytest.mark.parametrize("script", ["sdxl_train", "sdxl_train_network"])
def test_every_flag_of_kohya_is_carried_over_or_has_a_reason(script: str) -> None:
    for name in sorted(known.KOHYA):
        for value in ("", "=1", "=cpu", "=fp16", "=0.5", "=/there"):
            migration = of(f"--{name}{value}", script=script)
            reason = left(migration).get(f"--{name}", "")
            assert reason or f"--{name}" in migration.carried, name
            assert "launchers have it" not in reason and "did you mean" not in reason, name


def test_what_only_the_other_script_has_is_sent_to_its_counterpart() -> None:
    given = "--learning_rate_te1=1e-6 --learning_rate_te2=1e-6 --block_lr=1,2 --learning_rate=2e-5"
    reasons = left(of(given, script="sdxl_train_network"))
    theirs = "not possible: it belongs to sdxl_train.py; text_encoder_lr is the text encoders'"
    assert reasons["--learning_rate_te1"] == reasons["--learning_rate_te2"] == theirs
    assert reasons["--block_lr"] == "not possible: it belongs to sdxl_train.py; unet_lr is the whole UNet's"


def test_a_setting_of_nothing_asks_for_nothing() -> None:
    for nothing in ("", [], [""], None, False):
        migration = migrate.run(json.dumps(dict.fromkeys(sorted(known.KOHYA), nothing)), "c.json")
        assert {entry.why for entry in migration.unknown} <= {"unreadable"}, migration.unknown


def test_the_vocabulary_gives_each_flag_one_number_of_values() -> None:
    assert not known.SWITCHES & known.MANY and not known.SWITCHES & known.SINGLE and not known.MANY & known.SINGLE
    assert {name for name in known.LEFT if "." not in name} <= known.KOHYA


def test_zeros_of_block_lr_freeze_blocks() -> None:
    rates = ["0"] * 23
    rates[0], rates[10], rates[22] = "1e-5", "1e-5", "1e-5"
    unet = at(of(f"--block_lr={','.join(rates)}"), "learn.unet")
    assert unet == {"rate": 1e-5, "parts": ["time_embed", "label_emb", "middle_block.0", "out"]}
    assert at(of(f"--block_lr={','.join(['2e-5'] * 23)}"), "learn.unet") == {"rate": 2e-5}


def test_secrets_are_repeated_nowhere() -> None:
    text = (
        "export HF_TOKEN=sesame1 MY_API_KEY=sesame2\n"
        f"WANDB_API_KEY=sesame3 {SMALL} --log_with=wandb --wandb_api_key sesame4 --huggingface_token=sesame5"
    )
    migration = migrate.run(text, "train.sh")
    assert "sesame" not in migration.yaml + migrate.report(migration) + str(migration)
    assert migration.settings["secrets"] == ["HF_TOKEN", "MY_API_KEY", "WANDB_API_KEY"]


def test_what_the_shell_sets_for_the_training_comes_along() -> None:
    before = "export NCCL_DEBUG=INFO\nMODEL=/x\nOMP_NUM_THREADS=4 CUDA_VISIBLE_DEVICES=0,1"
    text = f"{before} {SMALL} --vae=$MODEL/v --save_state"
    migration = migrate.run(text, "train.sh")
    assert migration.settings["env"] == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4"}
    assert at(migration, "vae") == "/x/v"
    assert any("CUDA_VISIBLE_DEVICES" in note for note in migration.notes)


def test_a_variable_that_nothing_sets_is_kept_and_told() -> None:
    migration = of("--vae=$HOME/vae.safetensors --output_dir ${OUT}")
    assert at(migration, "vae") == "$HOME/vae.safetensors"
    assert "train.vae: the value of $HOME" in migration.blanks
    assert "# FILL IN: the value of $HOME" in migration.yaml


@pytest.mark.parametrize(
    "text",
    [
        "accelerate launch \\\n sdxl_train.py \\\n  --seed=7 \\\n --max_train_steps 9\n",
        "accelerate launch \n  sdxl_train.py  \n   --seed=7  \n  #--seed=8\n --max_train_steps 9\n",
        "accelerate launch ^\r\n sdxl_train.py ^\r\n --seed=7 ^\r\n --max_train_steps 9\r\n",
        "accelerate launch `\n sdxl_train.py `\n --seed=7 `\n --max_train_steps 9",
        "```sh\n$ accelerate launch sdxl_train.py --seed=7 --max_train_steps 9 > log 2>&1\n```",
        "> python -u ../sd/sdxl_train.py --seed 7 --max_train_steps '9' && echo done; ls --all",
        "torchrun --nproc_per_node=2 sdxl_train.py --seed=7 --max_train_steps=9 | tee log",
        "S=7\nARGS='--seed=7 --max_train_steps=9'\ncd x && accelerate launch sdxl_train.py $ARGS &",
        "--seed=7\n--max_train_steps=9",
        "python prepare.py --full_path a b\naccelerate launch sdxl_train.py --seed=7 --max_train_steps=9",
        "seed = 7\nmax_train_steps = 9",
        "[a]\nseed = 7\n[b]\nmax_train_steps = 9",
        '{"seed": 7, "max_train_steps": 9}',
    ],
)
def test_a_command_is_read_however_it_was_pasted(text: str) -> None:
    migration = migrate.run(text, "notes")
    assert (at(migration, "seed"), at(migration, "steps")) == (7, 9)
    assert migration.unknown == ()


def test_a_flag_is_told_with_its_line() -> None:
    migration = migrate.run(
        "#!/bin/sh\n\naccelerate launch sdxl_train.py \\\n  --seed=1 \\\n  --color_aug\n", "t.sh"
    )
    assert [entry.place for entry in migration.unknown] == ["t.sh:5"]
    migration = migrate.run("seed = 1\n[x]\n\ncolor_aug = true\n", "t.toml")
    assert [entry.place for entry in migration.unknown] == ["t.toml:4"]


def test_a_second_training_in_the_file_is_told() -> None:
    migration = migrate.run(f"{SMALL}--seed=1\n{SMALL}--seed=2\n", "t.sh")
    assert at(migration, "seed") == 1
    assert "t.sh:2 is another training command: migrate it by itself" in migration.notes


def test_the_files_that_a_command_names_are_read_with_it() -> None:
    files = {
        "c.toml": "[x]\nseed = 3\ntrain_batch_size = 5\nmax_train_epochs = 2\n",
        "d.toml": '[[datasets]]\nbatch_size = 8\n[[datasets.subsets]]\nimage_dir = "/a"\n',
        "a.yaml": "distributed_type: DEEPSPEED\ndeepspeed_config:\n  zero_stage: 1\nnum_processes: 2\n",
    }
    text = (
        "accelerate launch --config_file a.yaml sdxl_train.py --config_file c --dataset_config d.toml --seed=4 "
        "--train_data_dir=/b --mixed_precision=bf16"
    )
    migration = migrate.run(text, "t.sh", migrate.AtHand(files))
    assert at(migration, "seed") == 4  # the command line wins over its file
    assert at(migration, "epochs") == 2
    assert at(migration, "batch.per_slot") == 8  # and the data set over both
    assert at(migration, "data.sources") == [{"folder": "/a"}]
    assert at(migration, "engine") == {"kind": "zero", "stage": 1}
    assert left(migration)["--train_data_dir"].startswith("overruled")


def test_kohyas_prompt_files_become_samples() -> None:
    told = {
        "p.json": json.dumps(["a cat --s 12", {"prompt": "a dog"}]),
        "p.toml": '[prompt]\nscale = 3\n[[prompt.subset]]\nprompt = "x"\n',
    }
    flags = "--sample_prompts p.json --sample_every_n_steps 5"
    shown = at(migrate.run(SMALL + flags, "t.sh", migrate.AtHand(told)), "samples")
    assert shown == {"every_steps": 5, "prompts": ["a cat", "a dog"], "denoise_steps": 12, "guidance": 7.5}
    flags = "--sample_prompts p.toml --sample_every_n_epochs 1"
    shown = at(migrate.run(SMALL + flags, "t.sh", migrate.AtHand(told)), "samples")
    assert shown == {"every_steps": 500, "prompts": ["x"], "denoise_steps": 30, "guidance": 3.0}


def test_a_warm_up_is_as_long_as_it_was_on_that_many_processes() -> None:
    text = SMALL.replace("launch", "launch --num_processes=8") + "--lr_scheduler=cosine --lr_warmup_steps=100"
    assert at(migrate.run(text, "t.sh"), "learn.warmup_steps") == 13


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("accelerate launch flux_train.py --seed=1", "t.sh", "trains Flux"),
        ("python sdxl_train_control_net.py --seed=1", "t.sh", "trains ControlNets"),
        ("echo hello", "t.sh", "t.sh holds no training command"),
        ("", "t.sh", "holds no training command"),
        ("\0\1", "t.sh", "not a text of settings"),
        (SMALL + '\n--vae="/x', "t.sh", "t.sh:2 a quotation begins here"),
        ("a = ", "t.toml", "t.toml is not TOML"),
        ("{", "t.json", "t.json is not JSON"),
        ("[1]", "t.json", "holds no settings"),
        ("a: [", "t.yaml", "t.yaml is not YAML"),
        ("- a", "t.yaml", "holds no settings"),
        ("a: &x\n  b: *x\n", "t.yaml", ""),
        ("name: x\nshared: /y\ntrain: {}\n", "job.yaml", "a job of clusterft already"),
    ],
)
def test_what_is_no_training_of_sdxl_is_refused_with_a_remedy(text: str, name: str, told: str) -> None:
    if not told:
        assert migrate.run(text, name).unknown
        return
    with pytest.raises(ConfigError) as caught:
        migrate.run(text, name)
    assert told in caught.value.message and caught.value.remedy


def test_a_file_beside_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"c\.toml is not UTF-8"):
        migrate.run(SMALL + "--config_file=c.toml", "t.sh", migrate.Beside(tmp_path / "t.sh"))
