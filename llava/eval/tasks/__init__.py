"""TASKS maps the name of each benchmark in --tasks to its Task; each benchmark has a small file."""

from llava.eval.task import Task
from llava.eval.tasks import (
    docvqa,
    easy_vqa,
    gqa,
    llava_bench,
    mmbench,
    mme,
    mmmu,
    mmvet,
    ocr_bench,
    pope,
    prismvqa,
    qbench,
    science_qa,
    seed,
    textvqa,
    vizwiz,
    vqav2,
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        easy_vqa.TASK,
        prismvqa.TASK,
        vqav2.TASK,
        vqav2.VAL,
        gqa.TASK,
        vizwiz.TASK,
        vizwiz.VAL,
        science_qa.TASK,
        textvqa.TASK,
        pope.TASK,
        mme.TASK,
        mmbench.TASK,
        mmbench.CN,
        seed.TASK,
        llava_bench.TASK,
        mmvet.TASK,
        qbench.TASK,
        qbench.TEST,
        qbench.ZH,
        qbench.ZH_TEST,
        docvqa.TASK,
        docvqa.TEST,
        ocr_bench.TASK,
        mmmu.TASK,
    )
}
