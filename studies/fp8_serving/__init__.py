"""A vision-language detector of nutrition labels, base against FP8."""

#: Scales by channel and token, found as inputs come; or one a matrix and one a layer, fixed on pictures.
RECIPES = ("fp8-dynamic", "fp8-static")
