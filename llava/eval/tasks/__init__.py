"""Every benchmark by its name in --tasks; one small file each."""

from llava.eval.task import Task
from llava.eval.tasks import easy_vqa, pope

TASKS: dict[str, Task] = {task.name: task for task in (easy_vqa.TASK, pope.TASK)}
