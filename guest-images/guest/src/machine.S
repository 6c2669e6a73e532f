/*
 * Ring 0 of the guest: the ways in from the boot loader, and the few services that ring 3 cannot
 * do for itself. Everything else, exceptions included, is handled in ring 3, because a hypervisor
 * may have to emulate ring 0 an instruction at a time. Only plain integer instructions here.
 */

/* ---- The PVH entry point, named to the boot loader by a note ---- */

.section .note.Xen, "a", @note
    .balign 4
    .long 4                         /* length of the name */
    .long 8                         /* length of the value */
    .long 18                        /* XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad pvh_start

/* ---- 32-bit protected mode, no paging, flat segments; EBX: the start info ---- */

.section .text.entry, "ax", @progbits
.code32
.globl pvh_start
pvh_start:
    movl %ebx, %esi                 /* where the Linux protocol has its structure */
    movl %cr4, %eax
    orl $0x20, %eax                 /* PAE */
    movl %eax, %cr4
    movl $boot_pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          /* EFER */
    rdmsr
    orl $0x100, %eax                /* LME */
    wrmsr
    lgdt gdt_pointer
    movl %cr0, %eax
    orl $0x80000001, %eax           /* PG, PE */
    movl %eax, %cr0
    ljmpl $0x08, $linux_start

/* ---- 64-bit mode, paging on; RSI: the zero page (or, from above, the start info) ---- */

.code64
.globl linux_start
linux_start:
    cli
    cld
    movl $boot_pml4, %eax
    movq %rax, %cr3
    lgdt gdt_pointer
    movl $interrupt_stack_top, %esp

    /* SSE has to work before the first compiled code runs. */
    movq %cr0, %rax
    andl $~0xc, %eax                /* not EM, not TS */
    orl $0x10022, %eax              /* WP, NE, MP */
    movq %rax, %cr0
    movq %cr4, %rax
    orl $0x620, %eax                /* OSXMMEXCPT, OSFXSR, PAE */
    andl $~0x300000, %eax           /* not SMEP, not SMAP: all pages are user pages */
    movq %rax, %cr4

    /* The addresses in these descriptors are split up in ways that a linker cannot fill in. */
    movl $task_state, %eax
    movw %ax, gdt_task + 2
    shrl $16, %eax
    movb %al, gdt_task + 4
    movb %ah, gdt_task + 7
    movl $service_entry, %eax
    movw %ax, idt + 3 * 16
    shrl $16, %eax
    movw %ax, idt + 3 * 16 + 6
    movl $0x28, %eax
    ltr %ax
    lidt idt_pointer

    xorl %eax, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %fs
    movl %eax, %gs

    /* To ring 3. Interrupts stay off until its first wait: the PIC is not set up. */
    movq %rsi, %rdi
    pushq $0x1b
    pushq $stack_top - 8            /* as if called */
    pushq $0x2
    pushq $0x23
    pushq $ring3_main
    iretq

/* ---- int3 from ring 3: RAX says what to do. The gate has turned interrupts off. ---- */

.balign 16
service_entry:
    cmpl $1, %eax
    jb service_wait
    je service_write_string
    cmpl $3, %eax
    jb service_write_port
    movq %rdi, %cr3                 /* 3: load the page tables at RDI */
    iretq

    /* 0: wait for an interrupt, unless one came since the last wait. `sti` takes effect after
     * the instruction behind it, so none can slip in between the check and `hlt`. */
service_wait:
    cmpb $0, interrupted
    jne 1f
    sti
    hlt
    cli
1:  movb $0, interrupted
    orl $0x200, 16(%rsp)            /* ring 3 runs with interrupts on from now */
    iretq

    /* 1: write RCX bytes at RSI to port DX */
service_write_string:
    rep outsb
    iretq

    /* 2: write SIL to port DX */
service_write_port:
    movl %esi, %eax
    outb %al, %dx
    iretq

/* ---- Device interrupts. The PIC ends them by itself, the device is asked from ring 3. ---- */

.balign 16
.globl interrupt_entry
interrupt_entry:
    movb $1, interrupted
    iretq

/* ---- Exceptions: note what happened, and let ring 3 say so and end the machine ---- */

.macro exception number, pushes_error
    .balign 16
    .if \pushes_error == 0
    pushq $0
    .endif
    pushq $\number
    jmp exception_common
.endm

.balign 16
.globl exception_entries            /* 32 entries of 16 bytes */
exception_entries:
    exception 0, 0
    exception 1, 0
    exception 2, 0
    exception 3, 0
    exception 4, 0
    exception 5, 0
    exception 6, 0
    exception 7, 0
    exception 8, 1
    exception 9, 0
    exception 10, 1
    exception 11, 1
    exception 12, 1
    exception 13, 1
    exception 14, 1
    exception 15, 0
    exception 16, 0
    exception 17, 1
    exception 18, 0
    exception 19, 0
    exception 20, 0
    exception 21, 1
    exception 22, 0
    exception 23, 0
    exception 24, 0
    exception 25, 0
    exception 26, 0
    exception 27, 0
    exception 28, 0
    exception 29, 1
    exception 30, 1
    exception 31, 0

exception_common:
    cmpb $0, exception_taken        /* an exception while one is reported: give up */
    jne hard_reset
    movb $1, exception_taken
    popq exception_frame            /* number */
    popq exception_frame + 8        /* error code */
    popq exception_frame + 16       /* RIP */
    addq $16, %rsp
    popq exception_frame + 24       /* RSP */
    movq %cr2, %rax
    movq %rax, exception_frame + 32
    pushq $0x1b
    pushq $exception_stack_top - 8
    pushq $0x2
    pushq $0x23
    pushq $exception_main
    iretq

hard_reset:
    movb $0xfe, %al
    outb %al, $0x64
    cli
    hlt
    jmp hard_reset

/* ---- Descriptor tables ---- */

.section .data.machine, "aw", @progbits
.balign 16
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 08: ring 0 code, 64-bit */
    .quad 0x00cf93000000ffff        /* 10: ring 0 data */
    .quad 0x00cff3000000ffff        /* 18: ring 3 data (selector 1b) */
    .quad 0x00affb000000ffff        /* 20: ring 3 code, 64-bit (selector 23) */
gdt_task:
    .quad 0x0000890000000067        /* 28: task state, 104 bytes; the base is filled in */
    .quad 0
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

.balign 16
task_state:
    .long 0
    .quad interrupt_stack_top       /* the stack on entry to ring 0 */
    .fill 88, 1, 0
    .word 0, 104                    /* no I/O permission map */

/* 48 gates; ring 3 fills in all but the one that it needs to enter ring 0. */
.balign 16
.globl idt
idt:
    .fill 3 * 16, 1, 0
    .word 0, 0x08, 0xee00, 0        /* interrupt gate, may be used by ring 3; address filled in */
    .quad 0
    .fill 44 * 16, 1, 0
idt_end:
idt_pointer:
    .word idt_end - idt - 1
    .quad idt

interrupted:
    .byte 0
exception_taken:
    .byte 0

.balign 8
.globl exception_frame              /* number, error code, RIP, RSP, CR2 */
exception_frame:
    .fill 5, 8, 0

/*
 * Page tables to start with: the first GiB, identity, 2 MiB pages, for everyone, already accessed
 * and dirty. Ring 3 makes the final ones.
 */
.section .data.page_tables, "aw", @progbits
.balign 4096
boot_pml4:
    .quad boot_pdpt + 0x27
    .fill 511, 8, 0
boot_pdpt:
    .quad boot_pd + 0x27
    .fill 511, 8, 0
boot_pd:
    .set page, 0
    .rept 512
    .quad page + 0xe7
    .set page, page + 0x200000
    .endr

.section .bss.machine, "aw", @nobits
.balign 16
    .skip 1024
interrupt_stack_top:
    .skip 16384
exception_stack_top:

/* Below the image, with nothing mapped under it: see paging.rs. */
.set stack_top, 0x1000000
