"""Images with any number of tags: a task, a data source and a backbone that a recipe has with `imports: [image_tags]`.

An example of users' own code: nothing of the platform is changed for it.
"""

from image_tags import backbone  # noqa: F401  # registers with timm
from image_tags.sections import TAGGING, Tagging, TagTable
from image_tags.source import TagTableSource
from scalablevit import register_source, register_task

register_source(TagTable, TagTableSource)
register_task(TAGGING, Tagging)
