"""Number types of configs."""

from typing import Annotated

from pydantic import Field

PositiveInt = Annotated[int, Field(ge=1)]


Ratio = Annotated[float, Field(ge=0, le=1)]


NotNegative = Annotated[float, Field(ge=0)]
