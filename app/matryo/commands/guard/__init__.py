"""`matryo guard`: do the vectors that are made today still belong to an index?"""
