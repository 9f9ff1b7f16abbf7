"""The job through distilabel, as its guides lay it out: `python distilabel_job.py SPEC.json`, JSON on the last line."""

import json
import sys
import time

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts, StepInput, step
from distilabel.steps.tasks import TextGeneration


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)

    @step(inputs=["answer", "revision"], outputs=["principle", "a", "b"])
    def pairs(inputs: StepInput):
        rows = []
        for row in inputs:
            for principle in spec["principles"]:
                for a, b in ((row["answer"], row["revision"]), (row["revision"], row["answer"])):
                    rows.append(row | {"principle": principle["compare"], "a": a, "b": b})
        yield rows

    def writes(name: str, template: str, columns: list, out: str, max_tokens: int) -> TextGeneration:
        llm = OpenAILLM(
            model=spec["model"],
            base_url=spec["url"] + "/v1",
            api_key="none",
            generation_kwargs={"max_new_tokens": max_tokens, "temperature": 0.7},
        )
        return TextGeneration(
            name=name,
            llm=llm,
            template=template,
            columns=columns,
            output_mappings={"generation": out},
            input_batch_size=spec["batch"],
        )

    with Pipeline(name="job") as pipeline:
        load = LoadDataFromDicts(data=spec["rows"], batch_size=spec["batch"])
        answer = writes("answer", spec["answer"], ["prompt"], "answer", spec["answer_tokens"])
        critique = writes(
            "critique", spec["critique"], ["prompt", "answer", "critique_request"], "critique", spec["critique_tokens"]
        )
        revise = writes(
            "revise",
            spec["revise"],
            ["prompt", "answer", "critique", "revision_request"],
            "revision",
            spec["answer_tokens"],
        )
        judge = writes("judge", spec["judge"], ["principle", "prompt", "a", "b"], "verdict", 1)
        load >> answer >> critique >> revise >> pairs() >> judge

    started = time.monotonic()
    found = pipeline.run(use_cache=False)
    seconds = time.monotonic() - started
    print(json.dumps({"seconds": seconds, "judgments": len(found["default"]["train"])}))


if __name__ == "__main__":
    main()
