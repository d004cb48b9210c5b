# cuDNN 9 and its header-only C++ interface, cudnn-frontend: in the toolkit, among Python's packages (nvidia-cudnn-cu13,
# nvidia-cudnn-frontend), the latter also in CUDNN_FRONTEND_DIR. Sets cudnn_found where attention is to have them.
set(SWITCHYARD_CUDNN AUTO CACHE STRING "cuDNN's attention beside ours: ON, OFF, or AUTO: where all that it needs is found")
set(CUDNN_FRONTEND_DIR "" CACHE PATH "Where cudnn-frontend lies: the directory of cudnn_frontend.h, or the one above")
set(cudnn_found FALSE)
if(SWITCHYARD_CUDNN STREQUAL AUTO OR SWITCHYARD_CUDNN)
  execute_process(COMMAND python3 -c "import sysconfig; print(sysconfig.get_path('purelib'))"
    OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_path(CUDNN_INCLUDE cudnn.h NO_CACHE
    HINTS ${CUDAToolkit_INCLUDE_DIRS} ${packages}/nvidia/cudnn/include)
  find_library(CUDNN_LIBRARY NAMES cudnn libcudnn.so.9 NO_CACHE
    HINTS ${CUDAToolkit_LIBRARY_DIR} ${packages}/nvidia/cudnn/lib)
  find_path(CUDNN_FRONTEND_INCLUDE cudnn_frontend.h NO_CACHE
    HINTS ${CUDNN_FRONTEND_DIR} ${CUDNN_FRONTEND_DIR}/include ${packages}/include)
  if(CUDNN_INCLUDE AND CUDNN_LIBRARY AND CUDNN_FRONTEND_INCLUDE)
    set(cudnn_found TRUE)
    message(STATUS "cuDNN's attention: on (${CUDNN_LIBRARY}, ${CUDNN_FRONTEND_INCLUDE})")
  else()
    set(missing "cuDNN's attention: off; headers: ${CUDNN_INCLUDE}, library: ${CUDNN_LIBRARY}, frontend: ${CUDNN_FRONTEND_INCLUDE}")
    if(NOT SWITCHYARD_CUDNN STREQUAL AUTO)
      message(FATAL_ERROR "${missing}. Install cuDNN 9 and 'pip install nvidia-cudnn-frontend', or name the latter's "
                          "directory with -DCUDNN_FRONTEND_DIR=DIR")
    endif()
    message(STATUS "${missing}")
  endif()
else()
  message(STATUS "cuDNN's attention: off (SWITCHYARD_CUDNN)")
endif()
