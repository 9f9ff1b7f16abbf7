"""The job through distilabel, as its guides lay it out: `python distilabel_job.py SPEC.json`, JSON on the last line."""

import json
import sys
import time
from pathlib import Path

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, StepInput, step
from distilabel.steps.tasks import TextGeneration

SPEC = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))


@step(inputs=["answer", "revision"], outputs=["principle", "a", "b"])
def pairs(inputs: StepInput):  # distilabel hands steps to other processes by name: of the module, or it waits for ever
    rows = []
    for row in inputs:
        for principle in SPEC["principles"]:
            for a, b in ((row["answer"], row["revision"]), (row["revision"], row["answer"])):
                rows.append(row | {"principle": principle["compare"], "a": a, "b": b})
    yield rows


def writes(name: str, template: str, columns: list, out: str, max_tokens: int) -> TextGeneration:
    llm = OpenAILLM(
        model=SPEC["model"],
        base_url=SPEC["url"] + "/v1",
        api_key="none",
        generation_kwargs={"max_new_tokens": max_tokens, "temperature": 0.7},
    )
    return TextGeneration(
        name=name,
        llm=llm,
        template=template,
        columns=columns,
        output_mappings={"generation": out},
        input_batch_size=SPEC["batch"],
    )


def main() -> None:
    answer_tokens, critique_tokens = SPEC["answer_tokens"], SPEC["critique_tokens"]
    asked = ["prompt", "answer", "critique_request"]
    revised = ["prompt", "answer", "critique", "revision_request"]
    with Pipeline(name="job") as pipeline:
        load = LoadDataFromDicts(data=SPEC["rows"], batch_size=SPEC["batch"])
        answer = writes("answer", SPEC["answer"], ["prompt"], "answer", answer_tokens)
        critique = writes("critique", SPEC["critique"], asked, "critique", critique_tokens)
        revise = writes("revise", SPEC["revise"], revised, "revision", answer_tokens)
        judge = writes("judge", SPEC["judge"], ["principle", "prompt", "a", "b"], "verdict", 1)
        load >> answer >> critique >> revise >> pairs() >> judge

    started = time.monotonic()
    found = pipeline.run(use_cache=False)
    seconds = time.monotonic() - started
    verdicts = sum(row["verdict"] is not None for row in found["default"]["train"])  # an empty one is an answer too
    print(json.dumps({"seconds": seconds, "judgments": verdicts}))


if __name__ == "__main__":
    main()
