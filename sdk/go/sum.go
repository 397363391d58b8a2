// Adds what comes to a sum: an actor that keeps state, logs and puts out.
package main

func init() {
	Export(Actor{Component: "Sum", Inports: Ports{"add": "Integer"}, Outports: Ports{"sum": "Integer"}, Process: sum})
}

func sum(turn *Turn) error {
	var add, total int64
	if err := turn.Take("add", &add); err != nil {
		return err
	}
	if err := turn.State("total", &total); err != nil {
		return err
	}
	total += add
	turn.Log("the sum is %d", total)
	if err := turn.SetState("total", total); err != nil {
		return err
	}
	return turn.Send("sum", total)
}
