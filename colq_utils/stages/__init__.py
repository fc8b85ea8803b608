"""What the notebooks run, a module or folder per stage; stages never import each other."""
