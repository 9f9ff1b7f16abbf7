"""The job through NeMo Data Designer, as its guides lay it out: `python designer_job.py SPEC.json`, JSON at the end."""

import json
import sys
import tempfile
import time

import data_designer.config as dd
import pandas as pd
from data_designer.interface import DataDesigner


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)

    def model(alias: str, max_tokens: int) -> dd.ModelConfig:
        # Its default of a minute is over before a slow machine has answered 64; the row would be dropped.
        parameters = dd.ChatCompletionInferenceParams(
            temperature=0.7, max_tokens=max_tokens, max_parallel_requests=64, timeout=3600
        )
        return dd.ModelConfig(
            alias=alias, model=spec["model"], provider="local", inference_parameters=parameters, skip_health_check=True
        )

    builder = dd.DataDesignerConfigBuilder(
        model_configs=[
            model("writer", spec["answer_tokens"]),
            model("critic", spec["critique_tokens"]),
            model("judge", 1),
        ]
    )
    builder.with_seed_dataset(dd.DataFrameSeedSource(df=pd.DataFrame(spec["rows"])))

    def add(name: str, alias: str, prompt: str) -> None:
        builder.add_column(dd.LLMTextColumnConfig(name=name, model_alias=alias, prompt=prompt))

    add("answer", "writer", spec["answer"])
    add("critique", "critic", spec["critique"])
    add("revision", "writer", spec["revise"])
    for i, principle in enumerate(spec["principles"]):
        for order, a, b in (("ab", "answer", "revision"), ("ba", "revision", "answer")):
            text = spec["judge"].replace("{{ principle }}", principle["compare"])
            add(
                f"verdict_{i}_{order}",
                "judge",
                text.replace("{{ a }}", "{{ " + a + " }}").replace("{{ b }}", "{{ " + b + " }}"),
            )

    with tempfile.TemporaryDirectory() as folder:
        designer = DataDesigner(
            artifact_path=folder,
            model_providers=[dd.ModelProvider(name="local", endpoint=spec["url"] + "/v1", api_key="none")],
        )
        written = []  # when each batch was; the profile of the columns, which asks the internet, comes after the last
        started = time.monotonic()
        made = designer.create(
            builder,
            num_records=len(spec["rows"]),
            dataset_name="job",
            on_batch_complete=lambda _: written.append(time.monotonic()),
        )
        seconds = written[-1] - started
        frame = made.load_dataset()
    verdicts = sum(int(frame[name].notna().sum()) for name in frame if name.startswith("verdict_"))
    print(json.dumps({"seconds": seconds, "judgments": verdicts}))


if __name__ == "__main__":
    main()
