"""Result files to reports and figures; imports neither torch nor model nor stages."""
