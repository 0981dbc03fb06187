"""Tests of matryo-native, the operators of native/. `make native` builds and installs them."""
