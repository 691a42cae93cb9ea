"""Evol-Instruct (WizardLM, Xu et al. 2023): a task is made harder, step by step, or another one of its field is found.

An evolution that fails one of four rules is dropped; the task that it came from stays in the pool and may be evolved again.
"""

from __future__ import annotations

from nextgpt.train.instruct_data.answers import clean_text, parse_json, text_in, to_message
from nextgpt.train.instruct_data.jobs import Job, Task, marker
from nextgpt.train.instruct_data.rules import (
    check_gain,
    check_instruction,
    check_own_words,
    check_says_something,
    check_willing,
)

EVOLUTIONS = ("evol_deepening", "evol_constraints", "evol_concretising", "evol_reasoning", "evol_breadth")
DEEPEST = 4  # evolutions of one task, one after the other


async def evol_instruct(job: Job) -> list[Task]:
    """One evolution of one task of the pool, answered."""
    base = job.random.choice([task for task in (*job.seeds, *job.pool) if task.depth < DEEPEST])
    evolution = job.random.choice(EVOLUTIONS)
    found = parse_json(await job.ask(evolution, instruction=base.text))
    text = clean_text(text_in(found, "instruction"), job.cleaned)
    check_own_words(base.text, text, job.prompts.text(evolution))
    check_instruction(text, shows_media=marker().search(text) is not None)
    check_gain(base.text, text, "yes")  # no need to ask about a mere copy
    question = to_message("user", text, job)
    check_gain(base.text, text, await job.ask("evol_gain", before=base.text, after=text))
    answer = await job.ask("evol_answer", instruction=text, kinds=", ".join(job.made))
    check_willing(answer)
    check_says_something(answer)
    conversation = [question, to_message("assistant", answer, job)]
    return [Task(text, [conversation], depth=base.depth + 1)]
