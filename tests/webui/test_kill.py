"""A WebUI that is killed while a LoRA trains in it: after the next start the job offers to go on,
and ends with the weights of an unbroken run.
"""

import os
import random
import time

from safetensors.torch import load_file

API = "/train-lora/v1"
KILLS = int(os.environ.get("TRAIN_LORA_WEBUI_KILLS", "2"))


def test_killed_and_gone_on(start_webui, tmp_path, run):
    draws, folder, job, steps = random.Random(KILLS), tmp_path / "webui", None, []
    folder.mkdir()
    settings = run | {
        "max_train_steps": 150,
        "save_state_steps": 1,
        "save_steps": 40,
        "preview": False,
        "lora_dropout": 0.1,
        "mirror": True,
    }
    for _ in range(KILLS):
        with start_webui(folder) as webui:
            if job is None:
                webui.train(**settings | {"output_name": "whole"})
                job = webui.start_job(**settings | {"output_name": "broken"})
            else:
                found = webui.get(f"{API}/jobs/{job}")
                assert (
                    found["state"] == "interrupted"
                    and found["resumable"]
                    and found["resume_step"] >= steps[-1] - 1
                )
                webui.post(f"{API}/jobs/{job}/resume")
            last = steps[-1] if steps else 0
            webui.wait_for(
                job, lambda now: now["state"] == "training" and (now["step"] or 0) > last
            )
            time.sleep(draws.random() * 2)
            steps.append(webui.get(f"{API}/jobs/{job}")["step"])
    with start_webui(folder) as webui:
        found = webui.get(f"{API}/jobs/{job}")
        assert found["state"] == "interrupted" and webui.get(f"{API}/status")["current_job"] is None
        webui.post(f"{API}/jobs/{job}/resume")
        assert webui.wait(job)["state"] == "finished"
        assert (
            webui.draw("a circle <lora:broken:1>")
            == webui.draw("a circle <lora:whole:1>")
            != webui.draw("a circle")
        )
    whole, broken = (
        load_file(folder / "lora" / f"{name}.safetensors") for name in ("whole", "broken")
    )
    assert whole.keys() == broken.keys() and all(
        (whole[name] == broken[name]).all() for name in whole
    )
    print(f"\nkilled {KILLS} times, after steps {steps}")
