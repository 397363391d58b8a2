//! How large the parts of a module may be before a compiler sees it.
//!
//! The format allows what no compiler gets through in reasonable time or memory,
//! and a few hundred kilobytes are enough for it. Each bound is several times what
//! the largest programs of real languages have.

use wasmparser::{
    BlockType, ConstExpr, DataKind, DataSectionReader, ElementItems, ElementKind,
    ElementSectionReader, FuncToValidate, FuncValidatorAllocations, FunctionBody,
    GlobalSectionReader, Operator, OperatorsReader, Payload, TableInit, TableSectionReader,
    ValidatorResources, WasmModuleResources as _,
};

use super::{InvalidBinary, Refused, features};

/// How many of something a module may have.
pub(super) struct Bound {
    what: &'static str,
    max: u64,
}

/// Types, each of which costs the engine an entry shared by all modules.
pub(super) const TYPES: Bound = Bound { what: "types", max: 20_000 };
/// Parameters and results of all types. Each is moved by code of its own wherever host and
/// guest call each other.
pub(super) const VALUES: Bound =
    Bound { what: "parameters and results of all types", max: 200_000 };
/// Parameters of one type: every call copies them.
pub(super) const PARAMS: Bound = Bound { what: "parameters of one function", max: 256 };
/// Results of one type. A block has a type too, and each branch carries them.
pub(super) const RESULTS: Bound = Bound { what: "results of one function or block", max: 64 };
/// Imports. The host has less than a hundred functions.
pub(super) const IMPORTS: Bound = Bound { what: "imports", max: 1_000 };
/// Bytes of the name of an import or an export, which errors and inspections show.
pub(super) const NAME: Bound =
    Bound { what: "bytes in the name of an import or export", max: 4 << 10 };
/// Functions with a body. The largest interpreters have a few ten thousand.
pub(super) const FUNCTIONS: Bound = Bound { what: "functions", max: 200_000 };
/// Tables.
pub(super) const TABLES: Bound = Bound { what: "tables", max: 16 };
/// Entries of a table from the start, eight bytes each in every instance.
pub(super) const TABLE: Bound = Bound { what: "entries of one table", max: 200_000 };
/// Globals, sixteen bytes each in every instance.
pub(super) const GLOBALS: Bound = Bound { what: "globals", max: 10_000 };
/// Exports.
pub(super) const EXPORTS: Bound = Bound { what: "exports", max: 10_000 };
/// Element segments.
pub(super) const ELEMENTS: Bound = Bound { what: "element segments", max: 10_000 };
/// Entries of all element segments. A table takes half of them.
pub(super) const ENTRIES: Bound = Bound { what: "entries of all element segments", max: 400_000 };
/// What has to be run to fill a new instance: instructions of values and places that are
/// computed, and entries of tables and segments of data that cannot be copied as they are.
/// Each becomes code that no other bound counts and that runs without an end to its time; a
/// compiler takes kilobytes for it. Toolchains write none, or three for each segment where code
/// is made to be moved.
pub(super) const COMPUTED: Bound = Bound {
    what: "instructions, entries and segments that are run to fill each instance",
    max: 10_000,
};
/// Bytes from the first data of a memory to the last that are copied as they are, however few
/// of them there are. Where there is more in between, half of it must be data.
const IMAGE: u64 = 16 << 20;
/// Data segments. Go writes one for each run of bytes that are not zero.
pub(super) const DATA: Bound = Bound { what: "data segments", max: 100_000 };
/// Bytes of all functions, for which a compiler takes half a minute at worst. The largest
/// interpreters have half of it.
pub(super) const CODE: Bound = Bound { what: "bytes of code in all functions", max: 16 << 20 };
/// Bytes of one function, for which a compiler takes some seconds at worst. The
/// largest function of a large Go program has a fifth.
pub(super) const BODY: Bound = Bound { what: "bytes of code in one function", max: 256 << 10 };
/// Calls in one function. Each moves everything that is alive out of its way, so they cost
/// a compiler many times what other code of their size does.
pub(super) const CALLS: Bound = Bound { what: "calls in one function", max: 20_000 };
/// Locals of one function, parameters too. Time grows with their square where all
/// of them live through a loop.
pub(super) const LOCALS: Bound = Bound { what: "locals in one function", max: 4_000 };
/// Blocks inside each other. Go nests one for each point where a call may resume.
pub(super) const NESTING: Bound = Bound { what: "blocks inside each other", max: 10_000 };
/// Loops inside each other. Nobody writes a dozen.
pub(super) const LOOPS: Bound = Bound { what: "loops inside each other", max: 100 };
/// Values that the blocks of one function are given and give. A compiler's memory grows with
/// their square: seven bytes of code can take gigabytes. Most blocks have none.
pub(super) const PASSED: Bound =
    Bound { what: "values given to and by the blocks of one function", max: 4_000 };
/// Labels of one `br_table`.
pub(super) const LABELS: Bound = Bound { what: "labels of one `br_table`", max: 20_000 };

/// Places where a compiler may have to look for the value of a local, in one
/// function: every end of a block, for every local.
const MEETING: Bound = Bound { what: "locals times blocks in one function", max: 10_000_000 };
/// As [`MEETING`], in all functions together.
const MEETING_IN_ALL: Bound =
    Bound { what: "locals times blocks in all functions", max: 200_000_000 };
/// Values that a compiler may have to pass on where paths meet, in one function: for
/// every block, the locals that are set in it. Set inside many blocks, a few
/// kilobytes of code can stand for gigabytes of the compiler's memory.
const CARRIED: Bound = Bound { what: "locals set inside blocks of one function", max: 250_000 };
/// As [`CARRIED`], in all functions together.
const CARRIED_IN_ALL: Bound =
    Bound { what: "locals set inside blocks of all functions", max: 5_000_000 };

impl Bound {
    pub(super) fn check(&self, found: impl TryInto<u64>) -> Result<(), InvalidBinary> {
        let (what, max) = (self.what, self.max);
        let found = found.try_into().unwrap_or(u64::MAX);
        if found > max { Err(InvalidBinary::OverLimit { what, found, max }) } else { Ok(()) }
    }
}

/// What sections have in common, counted from one to the next.
#[derive(Default)]
pub(super) struct Sections {
    computed: u64,
    entries: u64,
    /// How many entries each table has from the start.
    tables: Vec<u64>,
}

impl Sections {
    /// Checks what a section says of itself. `memory` is the declared minimum, in bytes.
    pub(super) fn check(
        &mut self,
        payload: &Payload<'_>,
        memory: Option<u64>,
    ) -> Result<(), Refused> {
        match payload {
            Payload::TypeSection(section) => TYPES.check(section.count())?,
            Payload::ImportSection(section) => IMPORTS.check(section.count())?,
            Payload::FunctionSection(section) => FUNCTIONS.check(section.count())?,
            Payload::TableSection(section) => self.check_tables(section)?,
            Payload::GlobalSection(section) => self.check_globals(section)?,
            Payload::ExportSection(section) => EXPORTS.check(section.count())?,
            Payload::ElementSection(section) => self.check_elements(section)?,
            Payload::DataSection(section) => self.check_data(section, memory)?,
            Payload::CodeSectionStart { size, .. } => CODE.check(*size)?,
            _ => {}
        }
        Ok(())
    }

    fn check_tables(&mut self, section: &TableSectionReader<'_>) -> Result<(), Refused> {
        TABLES.check(section.count())?;
        for table in section.clone() {
            let table = table?;
            TABLE.check(table.ty.initial)?;
            self.tables.push(table.ty.initial);
            if let TableInit::Expr(value) = &table.init {
                self.compute(value)?;
            }
        }
        Ok(())
    }

    fn check_globals(&mut self, section: &GlobalSectionReader<'_>) -> Result<(), Refused> {
        GLOBALS.check(section.count())?;
        for global in section.clone() {
            self.compute(&global?.init_expr)?;
        }
        Ok(())
    }

    fn check_elements(&mut self, section: &ElementSectionReader<'_>) -> Result<(), Refused> {
        ELEMENTS.check(section.count())?;
        // A compiler copies segments as they are up to the first one of which it cannot tell.
        let mut copied = true;
        for segment in section.clone() {
            let segment = segment?;
            let (entries, functions) = match &segment.items {
                ElementItems::Functions(functions) => (functions.count(), true),
                ElementItems::Expressions(_, values) => (values.count(), false),
            };
            let entries = u64::from(entries);
            self.entries += entries;
            ENTRIES.check(self.entries)?;
            let run = match &segment.kind {
                ElementKind::Active { table_index, offset_expr } => {
                    self.compute(offset_expr)?;
                    let table = table_index.unwrap_or(0) as usize;
                    let size = self.tables.get(table).copied().unwrap_or(0);
                    let end = place(offset_expr)?.map(|place| place + entries);
                    copied &= functions && end.is_some_and(|end| end <= size);
                    !copied
                }
                ElementKind::Passive => true,
                ElementKind::Declared => false,
            };
            if run {
                self.computed += entries;
                COMPUTED.check(self.computed)?;
            }
            if let ElementItems::Expressions(_, values) = segment.items {
                for value in values {
                    self.compute(&value?)?;
                }
            }
        }
        Ok(())
    }

    /// Every instance would trap at once on data beyond its memory.
    fn check_data(
        &mut self,
        section: &DataSectionReader<'_>,
        memory: Option<u64>,
    ) -> Result<(), Refused> {
        DATA.check(section.count())?;
        let (mut active, mut bytes, mut first, mut last) = (0_u64, 0_u64, u64::MAX, 0_u64);
        let mut copied = true;
        for segment in section.clone() {
            let segment = segment?;
            let DataKind::Active { offset_expr, .. } = segment.kind else { continue };
            self.compute(&offset_expr)?;
            active += 1;
            let size = segment.data.len() as u64;
            // Other places are known only when it is instantiated.
            let Some(place) = place(&offset_expr)? else {
                copied = false;
                continue;
            };
            let end = place + size;
            if let Some(max) = memory {
                Bound { what: "bytes up to the end of its data in its memory", max }.check(end)?;
            }
            if size > 0 {
                (bytes, first, last) = (bytes + size, first.min(place), last.max(end));
            }
        }
        // A memory of which little is set is not copied either.
        let image = last.saturating_sub(first);
        copied &= image < IMAGE || image < 2 * bytes;
        if !copied {
            self.computed += active;
        }
        Ok(COMPUTED.check(self.computed)?)
    }

    /// Counts the instructions of a value, unless it stands there as it is.
    fn compute(&mut self, value: &ConstExpr<'_>) -> Result<(), Refused> {
        let mut operators = value.get_operators_reader();
        let first = operators.read()?;
        // Nothing at all is what a validator has better words for.
        if matches!(first, Operator::End)
            || is_plain(&first) && matches!(operators.read()?, Operator::End)
        {
            return Ok(());
        }
        // What was read already.
        self.computed += 1 + u64::from(is_plain(&first));
        while !operators.eof() {
            operators.read()?;
            self.computed += 1;
            COMPUTED.check(self.computed)?;
        }
        Ok(COMPUTED.check(self.computed)?)
    }
}

/// The place that stands there as it is.
fn place(offset: &ConstExpr<'_>) -> Result<Option<u64>, Refused> {
    let mut operators = offset.get_operators_reader();
    let Operator::I32Const { value } = operators.read()? else { return Ok(None) };
    let ends = matches!(operators.read()?, Operator::End);
    Ok(ends.then_some(u64::from(value.cast_unsigned())))
}

/// Whether the instruction alone is a value that nothing has to be run for.
fn is_plain(operator: &Operator<'_>) -> bool {
    matches!(
        operator,
        Operator::I32Const { .. }
            | Operator::I64Const { .. }
            | Operator::F32Const { .. }
            | Operator::F64Const { .. }
            | Operator::V128Const { .. }
            | Operator::RefNull { .. }
            | Operator::RefFunc { .. }
    )
}

/// Validates functions, and counts what they have in common.
#[derive(Default)]
pub(super) struct Functions {
    /// Kept from one function to the next.
    allocations: FuncValidatorAllocations,
    meeting: u64,
    carried: u64,
}

/// A block that is not closed yet.
struct Open {
    is_loop: bool,
    /// How often locals had been set before it.
    sets_before: u64,
}

impl Functions {
    /// Validates one function, and checks its bounds on the way.
    pub(super) fn check(
        &mut self,
        function: FuncToValidate<ValidatorResources>,
        body: &FunctionBody<'_>,
    ) -> Result<(), Refused> {
        BODY.check(body.range().len())?;
        let mut validator = function.into_validator(std::mem::take(&mut self.allocations));
        let mut reader = body.get_binary_reader();
        validator.read_locals(&mut reader)?;
        let locals = u64::from(validator.len_locals());
        LOCALS.check(locals)?;

        reader.set_features(features());
        let mut operators = OperatorsReader::new(reader);
        let mut open: Vec<Open> = Vec::new();
        let (mut loops, mut sets, mut meeting, mut carried) = (0_u64, 0, 0, 0);
        let (mut calls, mut passed) = (0_u64, 0_u64);
        while !operators.eof() {
            let at = operators.original_position();
            let operator = operators.read()?;
            validator.op(at, &operator)?;
            match operator {
                Operator::Block { blockty }
                | Operator::If { blockty }
                | Operator::Loop { blockty } => {
                    passed += values_of(blockty, validator.resources());
                    PASSED.check(passed)?;
                    let is_loop = matches!(operator, Operator::Loop { .. });
                    open.push(Open { is_loop, sets_before: sets });
                    NESTING.check(open.len())?;
                    loops += u64::from(is_loop);
                    LOOPS.check(loops)?;
                    meeting += locals;
                    MEETING.check(meeting)?;
                }
                // The last one closes the function itself.
                Operator::End => {
                    if let Some(block) = open.pop() {
                        loops -= u64::from(block.is_loop);
                        carried += locals.min(sets - block.sets_before);
                        CARRIED.check(carried)?;
                    }
                }
                Operator::LocalSet { .. } | Operator::LocalTee { .. } => sets += 1,
                Operator::BrTable { targets } => LABELS.check(targets.len())?,
                Operator::Call { .. } | Operator::CallIndirect { .. } => {
                    calls += 1;
                    CALLS.check(calls)?;
                }
                _ => {}
            }
        }
        operators.finish()?;
        self.allocations = validator.into_allocations();
        self.meeting += meeting;
        self.carried += carried;
        MEETING_IN_ALL.check(self.meeting)?;
        Ok(CARRIED_IN_ALL.check(self.carried)?)
    }
}

/// How many values a block is given and gives.
fn values_of(ty: BlockType, types: &ValidatorResources) -> u64 {
    match ty {
        BlockType::Empty => 0,
        BlockType::Type(_) => 1,
        BlockType::FuncType(index) => {
            let ty = types.sub_type_at(index).expect("the block was found to be valid");
            let ty = ty.unwrap_func();
            (ty.params().len() + ty.results().len()) as u64
        }
    }
}
