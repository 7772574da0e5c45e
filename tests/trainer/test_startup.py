"""What a rank imports before its first step, what it leaves out, and that nothing else changes by that."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ranks

from clusterft_trainer import imports

pytestmark = pytest.mark.trainer


def alone(code: str) -> str:
    """Run code in an interpreter of its own, where nothing is imported yet; what it printed."""
    env = os.environ | {"PYTHONPATH": ranks.TRAINER, "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_model_classes_come_without_quantisers_and_adapters_which_can_be_imported_afterwards() -> None:
    told = alone(
        "import sys\n"
        "from clusterft_trainer import imports\n"
        "imports.classes()\n"
        "print(sorted(n for n in sys.modules if n in imports.UNUSED or n == 'torch._inductor.compile_fx'))\n"
        "print(all(name in sys.modules for name in imports.CLASSES))\n"
        "with imports.peft() as peft:\n"
        "    print(peft.LoraConfig.__name__)\n"
    )
    assert told == "[]\nTrue\nLoraConfig\n"


def test_the_classes_come_too_where_somebody_has_imported_a_part_of_diffusers_already() -> None:
    told = alone(
        "import sys\n"
        "import diffusers.utils\n"
        "from clusterft_trainer import imports\n"
        "imports.classes()\n"
        "print(all(name in sys.modules for name in imports.CLASSES))\n"
    )
    assert "True\n" in told


def test_deepspeed_comes_without_the_compiler_and_leaves_its_switch_as_it_was() -> None:
    told = alone(
        "import os, sys\n"
        "from clusterft_trainer import imports\n"
        "os.environ['TORCHDYNAMO_DISABLE'] = '0'\n"
        "print(imports.deepspeed() is sys.modules['deepspeed'])\n"
        "print('torch._inductor.compile_fx' in sys.modules, os.environ['TORCHDYNAMO_DISABLE'])\n"
        "import torch\n"
        "counted = torch.compile(lambda x: x + 1, backend='eager')\n"
        "print(int(counted(torch.ones(()))))\n"
    )
    assert told == "True\nFalse 0\n2\n"


@pytest.mark.parametrize(
    "changes",
    [
        {"engine": {"kind": "ddp"}, "learn": {"unet": {"rate": 1e-3}, "lora": {"rank": 2}}},
        {"engine": {"kind": "zero", "stage": 2}},
    ],
    ids=["ddp with LoRA", "zero-2"],
)
def test_a_rank_says_nothing_but_progress_until_it_is_done(tmp_path: Path, changes: dict[str, Any]) -> None:
    with ranks.gang(tmp_path) as gang:
        ranks.start_alone(gang, tmp_path, ranks.settings(steps=1, **changes))
        assert gang.wait() == [0], gang.text()
        lines = gang.text().splitlines()
    assert [line for line in lines if not line.startswith("@clusterft ")] == []


def test_an_unseen_package_is_missing_only_inside_even_after_an_error() -> None:
    name = "colorsys"  # nobody imports it
    sys.modules.pop(name, None)
    with pytest.raises(KeyError), imports.unseen(name):
        assert importlib.util.find_spec(name) is None
        with pytest.raises(ImportError):
            importlib.import_module(name)
        raise KeyError(name)
    assert importlib.import_module(name) is sys.modules[name]


def test_what_was_imported_before_stays_seen() -> None:
    with imports.unseen("gc", "sys"):
        assert importlib.import_module("gc") is gc
    assert sys.modules["gc"] is gc


def test_the_collector_works_again_afterwards_and_passes_over_what_was_there() -> None:
    was, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.enable()
    try:
        with imports.collector_at_rest():
            assert not gc.isenabled()
            with imports.collector_at_rest():
                pass
            assert not gc.isenabled(), "an inner rest must not end the outer one"
        assert gc.isenabled() and gc.get_freeze_count() > frozen
    finally:
        if not was:
            gc.disable()
        if not frozen:
            gc.unfreeze()
