"""Self-Instruct (Wang et al. 2023), as Alpaca has it: new tasks from examples of tasks, then their answers.

A round shows six seeds and two tasks of earlier rounds and asks for more. Near duplicates go. A classification is asked for
its labels first and then for an input of each, or its examples would nearly all have one label; of any other task, an input
and its output.
"""

from __future__ import annotations

from nextgpt.train.instruct_data.answers import clean_text, parse_json, text_in, to_message
from nextgpt.train.instruct_data.jobs import Dropped, Job, Task, gather, marker
from nextgpt.train.instruct_data.rules import check_instance, check_instruction, check_labels

SEEDS_SHOWN, NEW_SHOWN = 6, 2
TASKS_ASKED = 4  # in one request
NO_INPUT = {"none", "n/a", "noinput", "<noinput>", "no input", "null"}


async def self_instruct(job: Job) -> list[Task]:
    """New tasks with a conversation each; a classification may have several."""
    known = job.random.sample(job.seeds, min(SEEDS_SHOWN, len(job.seeds)))
    known += job.random.sample(job.pool, min(NEW_SHOWN, len(job.pool)))
    job.random.shuffle(known)
    examples = "\n".join(
        f"{number}. ({'classification' if task.is_classification else 'generation'}) {' '.join(task.text.split())}"
        for number, task in enumerate(known, start=1)
    )
    asked = {"count": TASKS_ASKED, "kinds": ", ".join(job.made), "shown": job.offer()}
    proposals = _proposals(await job.ask("self_instruct_tasks", examples=examples, **asked), job)
    answered = await gather(_answered(task, job) for task in proposals)
    return [task for task in answered if task.conversations]


def _proposals(answer: str, job: Job) -> list[Task]:
    """The tasks in an answer that are new and well-formed."""
    listed = parse_json(answer).get("tasks")
    if not isinstance(listed, list) or not listed:
        raise Dropped("JSON without 'tasks'")
    tasks = []
    for found in listed:
        with job.counting():
            if not isinstance(found, dict):
                raise Dropped("a task that is no object")
            kind = text_in(found, "kind").lower()
            if kind not in ("classification", "generation"):
                raise Dropped("a task of neither kind")
            text = clean_text(text_in(found, "instruction"), job.cleaned)
            check_instruction(text, shows_media=marker().search(text) is not None)
            job.check_new(text)
            tasks.append(Task(text, is_classification=kind == "classification"))
    return tasks


async def _answered(task: Task, job: Job) -> Task:
    """The task with its conversations; without any where it was dropped."""
    with job.counting():
        pairs = await (_classified(task, job) if task.is_classification else _generated(task, job))
        for given, answer in pairs:
            with job.counting():
                check_instance(given, answer)
                question = "\n\n".join(filter(None, (task.text, given)))
                task.conversations.append([to_message("user", question, job), to_message("assistant", answer, job)])
    return task


async def _generated(task: Task, job: Job) -> list[tuple[str, str]]:
    asked = {"instruction": task.text, "kinds": ", ".join(job.made)}
    found = parse_json(await job.ask("self_instruct_generation", **asked))
    given = text_in(found, "input", or_empty=True)
    return [("" if given.lower() in NO_INPUT else given, text_in(found, "output", or_empty=True))]


async def _classified(task: Task, job: Job) -> list[tuple[str, str]]:
    found = parse_json(await job.ask("self_instruct_classification", instruction=task.text))
    labels, examples = found.get("labels"), found.get("examples")
    if not isinstance(labels, list) or not isinstance(examples, list):
        raise Dropped("JSON without 'labels' and 'examples'")
    pairs = [(text_in(each, "input"), text_in(each, "label")) for each in examples if isinstance(each, dict)]
    check_labels([str(label).strip() for label in labels], [label for _, label in pairs])
    inputs = [given for given, _ in pairs]
    if len(set(inputs)) < len(inputs):
        raise Dropped("a classification with one input twice")
    return pairs
