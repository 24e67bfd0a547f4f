# CMake's toolchain for the architecture that TRIPLE names, with Debian's libraries of it.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_C_COMPILER clang)
set(CMAKE_C_COMPILER_TARGET $ENV{TRIPLE})
set(CMAKE_EXE_LINKER_FLAGS_INIT -fuse-ld=lld)
# Else those of this machine's own architecture are found first.
set(OPENSSL_CRYPTO_LIBRARY /usr/lib/$ENV{TRIPLE}/libcrypto.so CACHE FILEPATH "")
set(OPENSSL_SSL_LIBRARY /usr/lib/$ENV{TRIPLE}/libssl.so CACHE FILEPATH "")
