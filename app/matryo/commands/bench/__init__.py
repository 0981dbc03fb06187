"""`matryo bench`: how fast is a model on this machine, alone, behind HTTP, and under load?"""
