# Finds the CUDA toolkit: in PATH, in CUDACXX, or in its usual place. Included from the top, as CMake wants it.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 80 90)
endif()
if(NOT CMAKE_CUDA_COMPILER AND EXISTS /usr/local/cuda/bin/nvcc)
  set(CMAKE_CUDA_COMPILER /usr/local/cuda/bin/nvcc)
endif()
enable_language(CUDA)
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake before 3.25.2 does not know how nvcc is asked for C++20
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
  message(FATAL_ERROR "CUDA ${CMAKE_CUDA_COMPILER_VERSION} was found (${CMAKE_CUDA_COMPILER}); 12.8 or newer is needed. "
                      "Name another with -DCMAKE_CUDA_COMPILER=PATH/nvcc, or configure with -DSWITCHYARD_CUDA=OFF")
endif()
find_package(CUDAToolkit REQUIRED)
